// The operators of the pretend device. Each is checked, logged and computed by the CPU's kernel on the same memory.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cstring>
#include <optional>
#include <sstream>

#include "device.h"
#include "memory.h"

namespace {

using namespace pretend;
using at::Tensor;
using c10::MemoryFormat;
using c10::SymIntArrayRef;
using c10::TensorImpl;

void *base_of(const Tensor &tensor) { return const_cast<void *>(tensor.storage().data()); }

// For example `float16[2,4,8,8]`, with `nhwc` or `strided` for another layout than contiguous, and `cpu:` on the host.
std::string describe(const Tensor &tensor) {
  std::ostringstream text;
  if (!tensor.is_cuda()) text << "cpu:";
  text << c10::toString(tensor.scalar_type()) << "[";
  for (size_t i = 0; i < tensor.sizes().size(); ++i) text << (i > 0 ? "," : "") << tensor.sizes()[i];
  text << "]";
  if (!tensor.is_contiguous()) {
    text << (tensor.dim() == 4 && tensor.is_contiguous(MemoryFormat::ChannelsLast) ? "nhwc" : "strided");
  }
  return text.str();
}

template <class Visit>
void each_tensor(const torch::jit::Stack &values, Visit visit) {
  const auto one = [&](const Tensor &tensor) {
    if (tensor.defined()) visit(tensor);
  };
  for (const auto &value : values) {
    if (value.isTensor()) {
      one(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor &tensor : value.toTensorVector()) one(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const auto &tensor : value.toOptionalTensorVector()) {
        if (tensor) one(*tensor);
      }
    }
  }
}

// Any operator that has no own kernel below.
void on_the_cpu(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
  const std::string name = op.schema().name();
  const torch::jit::Stack arguments(stack->end() - static_cast<long>(op.schema().arguments().size()), stack->end());
  std::ostringstream line;
  line << "op " << name;
  if (!op.schema().overload_name().empty()) line << "." << op.schema().overload_name();
  bool on_host = false, on_device = false;
  const StreamKey stream = current_stream();
  const uint64_t work = queue_work(stream);
  each_tensor(arguments, [&](const Tensor &tensor) {
    line << " " << describe(tensor);
    if (tensor.is_cuda()) {
      on_device = true;
      if (tensor.has_storage() && tensor.numel() > 0 && !Inside::now()) reads(base_of(tensor), stream, work, name.c_str());
    } else if (tensor.dim() > 0) {
      on_host = true;  // A scalar may be on the host: it becomes an argument of the kernel.
    }
  });
  TORCH_CHECK(Inside::now() || !on_device || !on_host || name.find("index") != std::string::npos,
              "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
              line.str(), ")");
  say(line.str());
  check_operator();
  {
    const Inside inside;
    at::native::cpu_fallback(op, stack);
  }
  if (Inside::now()) return;
  const torch::jit::Stack results(stack->end() - static_cast<long>(op.schema().returns().size()), stack->end());
  each_tensor(results, [&](const Tensor &tensor) {
    if (tensor.is_cuda() && tensor.has_storage() && tensor.numel() > 0) writes(base_of(tensor), stream, work);
  });
}

// Makes a device current for one allocation.
struct OnDevice {
  explicit OnDevice(std::optional<c10::Device> device)
      : guard(c10::Device(c10::DeviceType::CUDA, device && device->has_index()
                                                     ? device->index()
                                                     : static_cast<c10::DeviceIndex>(current_device()))) {}
  c10::DeviceGuard guard;
};

Tensor empty(SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<c10::Device> device, std::optional<bool>, std::optional<MemoryFormat> format) {
  const OnDevice on(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), device_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), dtype.value_or(at::kFloat), format);
}

Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  const OnDevice on(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(at::kFloat));
}

// The same memory as a tensor of the CPU.
Tensor host_view(const Tensor &tensor) {
  if (!tensor.is_cuda()) return tensor;
  c10::DataPtr data(base_of(tensor), new Tensor(tensor), [](void *owner) { delete static_cast<Tensor *>(owner); },
                    c10::Device(c10::DeviceType::CPU));
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), tensor.storage().nbytes(),
                                                       std::move(data), nullptr, false);
  auto view = at::detail::make_tensor<TensorImpl>(c10::Storage(std::move(storage)),
                                                  c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return view;
}

// A copy between host and device that need not wait.
void copy_async(Tensor &to, const Tensor &from, StreamKey stream, uint64_t work) {
  const bool to_device = to.is_cuda();
  const void *pinned = to_device ? from.const_data_ptr() : to.const_data_ptr();
  uses_pinned(pinned);
  const Inside inside;
  if (to_device) {
    host_view(to).copy_(from);
    if (from.is_contiguous()) expect_unchanged(from.const_data_ptr(), from.nbytes(), stream, work);
    return;
  }
  const Tensor contents = at::empty_like(to);
  contents.copy_(host_view(from));
  if (!to.is_contiguous()) {
    to.copy_(contents);
    return;
  }
  std::string bytes(static_cast<const char *>(contents.const_data_ptr()), contents.nbytes());
  deliver_later(to.mutable_data_ptr(), std::move(bytes), stream, work);
}

Tensor &copy(Tensor &to, const Tensor &from, bool non_blocking) {
  const bool between_devices = from.is_cuda() && to.is_cuda();
  const StreamKey stream = current_stream();
  const uint64_t work = queue_work(stream);
  if (from.is_cuda() && from.numel() > 0 && !Inside::now()) reads(base_of(from), stream, work, "copy_");
  if (between_devices) {
    say("op aten::copy_ " + describe(to) + " " + describe(from));
    check_operator();
    const Inside inside;
    host_view(to).copy_(host_view(from));
  } else {
    const bool pinned = is_pinned(from.is_cuda() ? to.const_data_ptr() : from.const_data_ptr());
    const bool waits = !(non_blocking && pinned);
    say(std::string("copy ") + (waits ? "waiting " : "async ") + (pinned ? "pinned " : "pageable ") + describe(from) +
        " to " + describe(to));
    check_alive();
    if (waits) {
      const Inside inside;
      host_view(to).copy_(host_view(from));
    } else {
      copy_async(to, from, stream, work);
    }
    if (waits && !Inside::now()) host_waits_stream(stream, "copy");
  }
  if (to.is_cuda() && to.numel() > 0 && !Inside::now()) writes(base_of(to), stream, work);
  return to;
}

Tensor copy_from(const Tensor &self, const Tensor &to, bool non_blocking) {
  Tensor target = to;
  copy(target, self, non_blocking);
  return to;
}

Tensor copy_from_and_resize(const Tensor &self, const Tensor &to) {
  const Inside inside;
  if (to.sizes() != self.sizes()) at::native::resize_(to, self.sizes());
  Tensor target = to;
  copy(target, self, false);
  return to;
}

at::Scalar item(const Tensor &tensor) {
  check_operator();
  const StreamKey stream = current_stream();
  if (!Inside::now()) {
    reads(base_of(tensor), stream, queue_work(stream), "item");
    host_waits_stream(stream, "item");
  }
  const Inside inside;
  return host_view(tensor).item();
}

void record_stream(Tensor &tensor, c10::Stream stream) {
  static_cast<c10::DeviceAllocator *>(device_allocator())->recordStream(tensor.storage().data_ptr(), stream);
}

const Tensor &resize(const Tensor &self, SymIntArrayRef size, std::optional<MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor as_strided(const Tensor &self, SymIntArrayRef size, SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}

Tensor view(const Tensor &self, SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

Tensor reshape_alias(const Tensor &self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("record_stream", &record_stream);
  m.impl("resize_", &resize);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &at::native::unfold);
  // One kernel each on a GPU; the CPU would compute these as several operators.
  for (const char *whole :
       {"convolution", "native_group_norm", "native_layer_norm", "_linalg_solve_ex", "scaled_dot_product_attention"}) {
    m.impl(whole, torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
  }
}
