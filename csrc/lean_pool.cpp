// Lean execution of pooling and padding: PyTorch's kernels both ways, told the shape of the input instead of keeping
// it; max pooling keeps one byte per output instead of eight.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda_glue.h"
#include "kernels.h"
#include "lean.h"
#include "tensors.h"

namespace igfast::lean {

Tensor unbacked_tensor(IntArrayRef sizes, IntArrayRef strides, const at::TensorOptions& options) {
  if (options.device().type() != at::kCPU) return at::empty_strided(sizes, strides, options);
  int64_t n_elements = 1;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return at::empty_strided(sizes, strides, options);
    n_elements += (sizes[d] - 1) * strides[d];
  }
  // Pages of a read-only anonymous mapping are never allocated; whoever reads them sees the kernel's page of zeros.
  const size_t n_bytes = n_elements * options.dtype().itemsize();
  void* pages = mmap(nullptr, n_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(pages != MAP_FAILED, "igfast: cannot map ", n_bytes, " bytes of address space");
  return at::from_blob(pages, sizes, strides, [n_bytes](void* data) { munmap(data, n_bytes); }, options);
}

namespace {

// ---------------------------------------------------------------------------------------------- max pooling

struct Window {
  at::DimVector kernel, stride, padding, dilation;
  bool ceil_mode;
};

// PoolArgs of 2-d and 3-d pooling alike: a 2-d one has a depth of 1.
PoolArgs pool_args(const Window& window, IntArrayRef input, const Tensor& like) {
  PoolArgs args{};
  const auto n_dims = static_cast<int64_t>(window.kernel.size());
  const IntArrayRef output = like.sizes();
  args.n_batch = output[0];
  args.n_channels = output[1];
  args.strides[0] = like.stride(0);
  args.strides[1] = like.stride(1);
  for (int64_t d = 0; d < 3; ++d) {
    const int64_t from = d - (3 - n_dims);
    const bool exists = from >= 0;
    args.input[d] = exists ? input[2 + from] : 1;
    args.output[d] = exists ? output[2 + from] : 1;
    args.kernel[d] = exists ? window.kernel[from] : 1;
    args.stride[d] = exists ? window.stride[from] : 1;
    args.padding[d] = exists ? window.padding[from] : 0;
    args.dilation[d] = exists ? window.dilation[from] : 1;
    args.strides[2 + d] = exists ? like.stride(2 + from) : 0;
  }
  return args;
}

void for_pool_rows(const PoolArgs& args, void (*launch)(const PoolArgs&, int64_t, int64_t)) {
  const int64_t n_items = args.n_batch * args.output[0] * args.output[1];
  const int64_t per_item = std::max<int64_t>(1, args.n_channels * args.output[2]);
  at::parallel_for(0, n_items, std::max<int64_t>(1, kGrainElements / per_item),
                   [&](int64_t begin, int64_t end) { launch(args, begin, end); });
}

Tensor cells_of(const Window& window, IntArrayRef input, const Tensor& positions) {
  Tensor cells = at::empty_strided(positions.sizes(), positions.strides(), positions.options().dtype(at::kByte));
  PoolArgs args = pool_args(window, input, positions);
  args.position = const_cast<int64_t*>(positions.const_data_ptr<int64_t>());
  args.cell = cells.mutable_data_ptr<uint8_t>();
  if (cells.is_cuda()) {
    pool_cells_from_positions_on_cuda("lean_max_pool", args, cells.device());
  } else {
    for_pool_rows(args, pool_cells_from_positions_cpu);
  }
  return cells;
}

Tensor positions_of(const Window& window, IntArrayRef input, const Tensor& cells) {
  Tensor positions = at::empty_strided(cells.sizes(), cells.strides(), cells.options().dtype(at::kLong));
  PoolArgs args = pool_args(window, input, cells);
  args.position = positions.mutable_data_ptr<int64_t>();
  args.cell = const_cast<uint8_t*>(cells.const_data_ptr<uint8_t>());
  if (cells.is_cuda()) {
    pool_positions_from_cells_on_cuda("lean_max_pool", args, cells.device());
  } else {
    for_pool_rows(args, pool_positions_from_cells_cpu);
  }
  return positions;
}

struct MaxPoolBackward final : Node {
  Window window;
  Shape input;

  MaxPoolBackward(Window w, const Tensor& x, const Tensor& cells) : window(std::move(w)), input(x) { save(cells); }

  Tensor input_gradient(Tensor grad) override {
    const Tensor positions = positions_of(window, input.sizes, unpack(0));
    const auto& backward =
        window.kernel.size() == 2 ? at::max_pool2d_with_indices_backward : at::max_pool3d_with_indices_backward;
    return backward(grad, input.placeholder(), window.kernel, window.stride, window.padding, window.dilation,
                    window.ceil_mode, positions);
  }
};

Tensor max_pool(const Tensor& input, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                bool ceil_mode) {
  const size_t n_dims = kernel.size();
  TORCH_CHECK_VALUE(input.dim() == static_cast<int64_t>(n_dims) + 2 && (n_dims == 2 || n_dims == 3) &&
                        stride.size() == n_dims && padding.size() == n_dims && dilation.size() == n_dims,
                    "igfast::lean_max_pool: input must be (batch, channels, *sizes) with 2 or 3 sizes and the window "
                    "must have as many, got ",
                    input.sizes(), " and ", kernel);
  int64_t n_cells = 1;
  for (size_t d = 0; d < n_dims; ++d) {
    n_cells *= kernel[d];
    TORCH_CHECK_VALUE((kernel[d] - 1) * dilation[d] + 1 <= input.size(2 + d),
                      "igfast::lean_max_pool: the window must not exceed the input, got ", kernel, " over ",
                      input.sizes());
  }
  check_has_kernels("lean_max_pool", input);
  TORCH_CHECK_VALUE(n_cells <= 256, "igfast::lean_max_pool: the window must have at most 256 cells, got ", n_cells);
  const Window window{at::DimVector(kernel), at::DimVector(stride), at::DimVector(padding), at::DimVector(dilation),
                      ceil_mode};
  Tensor positions;
  return run(
      input,
      [&] {
        const auto& forward = n_dims == 2 ? at::max_pool2d_with_indices : at::max_pool3d_with_indices;
        Tensor output;
        std::tie(output, positions) = forward(input, kernel, stride, padding, dilation, ceil_mode);
        return output;
      },
      [&] {
        const at::AutoDispatchBelowADInplaceOrView guard;
        return make_node<MaxPoolBackward>(window, input, cells_of(window, input.sizes(), positions));
      });
}

// ---------------------------------------------------------------------------------------------- average pooling

struct AvgPoolBackward final : Node {
  Window window;
  bool count_include_pad;
  optional<int64_t> divisor;
  Shape input;

  AvgPoolBackward(Window w, bool count_include_pad, optional<int64_t> divisor, const Tensor& x)
      : window(std::move(w)), count_include_pad(count_include_pad), divisor(divisor), input(x) {}

  Tensor input_gradient(Tensor grad) override {
    const auto& backward = window.kernel.size() == 2 ? at::avg_pool2d_backward : at::avg_pool3d_backward;
    return backward(grad, input.placeholder(), window.kernel, window.stride, window.padding, window.ceil_mode,
                    count_include_pad, divisor);
  }
};

Tensor avg_pool(const Tensor& input, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                bool count_include_pad, optional<int64_t> divisor) {
  TORCH_CHECK_VALUE(kernel.size() == 2 || kernel.size() == 3,
                    "igfast::lean_avg_pool: kernel must have 2 or 3 sizes, got ", kernel);
  const auto& forward = kernel.size() == 2 ? at::avg_pool2d : at::avg_pool3d;
  return run(
      input, [&] { return forward(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor); },
      [&] {
        return make_node<AvgPoolBackward>(
            Window{at::DimVector(kernel), at::DimVector(stride), at::DimVector(padding), {}, ceil_mode},
            count_include_pad, divisor, input);
      });
}

struct AdaptiveAvgPoolBackward final : Node {
  Shape input;

  explicit AdaptiveAvgPoolBackward(const Tensor& x) : input(x) {}

  Tensor input_gradient(Tensor grad) override {
    return grad.dim() == 4 ? at::_adaptive_avg_pool2d_backward(grad, input.placeholder())
                           : at::_adaptive_avg_pool3d_backward(grad, input.placeholder());
  }
};

Tensor adaptive_avg_pool(const Tensor& input, IntArrayRef output_size) {
  TORCH_CHECK_VALUE((output_size.size() == 2 || output_size.size() == 3) &&
                        input.dim() == static_cast<int64_t>(output_size.size()) + 2,
                    "igfast::lean_adaptive_avg_pool: input must be (batch, channels, *sizes) with 2 or 3 sizes, got ",
                    input.sizes());
  const bool is_2d = output_size.size() == 2;
  return run(
      input,
      [&] {
        return is_2d ? at::_adaptive_avg_pool2d(input, output_size) : at::_adaptive_avg_pool3d(input, output_size);
      },
      [&] { return make_node<AdaptiveAvgPoolBackward>(input); });
}

// ---------------------------------------------------------------------------------------------- padding

struct PadBackward final : Node {
  at::DimVector pad;
  bool reflects;
  Shape input;

  PadBackward(IntArrayRef pad, bool reflects, const Tensor& x)
      : pad(at::DimVector(pad)), reflects(reflects), input(x) {}

  Tensor input_gradient(Tensor grad) override {
    const Tensor like = input.placeholder();
    switch (pad.size()) {
      case 2: return (reflects ? at::reflection_pad1d_backward : at::replication_pad1d_backward)(grad, like, pad);
      case 4: return (reflects ? at::reflection_pad2d_backward : at::replication_pad2d_backward)(grad, like, pad);
      default: return (reflects ? at::reflection_pad3d_backward : at::replication_pad3d_backward)(grad, like, pad);
    }
  }
};

Tensor pad(const Tensor& input, IntArrayRef pad, std::string_view mode) {
  TORCH_CHECK_VALUE(
      (mode == "reflect" || mode == "replicate") && pad.size() % 2 == 0 && pad.size() >= 2 && pad.size() <= 6,
      "igfast::lean_pad: mode must be reflect or replicate over 1 to 3 dimensions, got ", mode, " and ", pad);
  return run(
      input, [&] { return at::pad(input, pad, std::string(mode)); },
      [&] { return make_node<PadBackward>(pad, mode == "reflect", input); });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def(
      "lean_max_pool(Tensor input, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> "
      "Tensor");
  m.def(
      "lean_avg_pool(Tensor input, int[] kernel, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
      "int? divisor) -> Tensor");
  m.def("lean_adaptive_avg_pool(Tensor input, int[] output_size) -> Tensor");
  m.def("lean_pad(Tensor input, int[] pad, str mode) -> Tensor");
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) { m.impl("lean_max_pool", &max_pool); }
#ifdef IGFAST_CUDA
TORCH_LIBRARY_IMPL(igfast, CUDA, m) { m.impl("lean_max_pool", &max_pool); }
#endif
TORCH_LIBRARY_IMPL(igfast, Autograd, m) { m.impl("lean_max_pool", &max_pool); }
TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) {
  m.impl("lean_avg_pool", &avg_pool);
  m.impl("lean_adaptive_avg_pool", &adaptive_avg_pool);
  m.impl("lean_pad", &pad);
}

}  // namespace igfast::lean
