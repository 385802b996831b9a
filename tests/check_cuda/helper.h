// Questions to libtorch that need its C++ interface. Strings are valid until the calling thread's next call.
#pragma once

extern "C" {

// Opens a library as libtorch opens those that it needs later. Returns null, or the message of the failure.
const char *check_cuda_open(const char *name);

// Returns how CUDA tensors are handled by an operator, for example `aten::add.Tensor`: `kernel`, `composite`, `none`, or
// `unknown` if there is no such operator.
const char *check_cuda_kernel(const char *operator_name);

}  // extern "C"
