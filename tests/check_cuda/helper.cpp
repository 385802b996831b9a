#include "helper.h"

#include <ATen/DynamicLibrary.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <exception>
#include <string>

namespace {

// Keeps an answer for the caller.
const char *answer(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

extern "C" {

const char *check_cuda_open(const char *name) {
  try {
    const at::DynamicLibrary library(name, nullptr, /*leak_handle=*/true);
    return nullptr;
  } catch (const c10::Error &error) {
    return answer(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return answer(error.what());
  }
}

const char *check_cuda_kernel(const char *operator_name) {
  const std::string text = operator_name;
  const size_t dot = text.find('.');
  const c10::OperatorName name(text.substr(0, dot), dot == std::string::npos ? "" : text.substr(dot + 1));
  const auto found = c10::Dispatcher::singleton().findSchema(name);
  if (!found) return "unknown";
  if (found->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return "kernel";
  return found->hasComputedKernelForDispatchKey(c10::DispatchKey::CUDA) ? "composite" : "none";
}

}  // extern "C"
