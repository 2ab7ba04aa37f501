// Lean execution of pooling and padding. Most operators use PyTorch's kernels, and save the input's shape instead of
// the input. Max pooling has its own kernels, and saves one byte per output instead of eight.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../kernels.h"
#include "../on_cuda.h"
#include "../tensors.h"
#include "node.h"
#include "python.h"

namespace igfast::lean {

namespace {

// ---------------------------------------------------------------------------------------------- max pooling

struct Window {
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool ceil_mode;
};

bool is_channels_last(at::MemoryFormat format) { return format != at::MemoryFormat::Contiguous; }

// Arguments for tensors that are dense in `format`. `from` is the input, or the gradient of the output; `to` is the
// other of the pair. A 2-d pool has depth 1.
MaxPoolArgs max_pool_args(const Window& window, IntArrayRef input, at::MemoryFormat format, const Tensor& from,
                          const Tensor& to, const Tensor& cells) {
  MaxPoolArgs args{};
  args.dtype = dtype_of("lean_max_pool", "input", from);
  args.channels_last = is_channels_last(format);
  args.n_batch = cells.size(0);
  args.n_channels = cells.size(1);
  const int64_t missing = 3 - static_cast<int64_t>(window.kernel.size());
  for (int64_t d = 0; d < 3; ++d) {
    const int64_t from_d = d - missing;
    const bool exists = from_d >= 0;
    args.input[d] = exists ? input[2 + from_d] : 1;
    args.output[d] = exists ? cells.size(2 + from_d) : 1;
    args.kernel[d] = exists ? window.kernel[from_d] : 1;
    args.stride[d] = exists ? window.stride[from_d] : 1;
    args.padding[d] = exists ? window.padding[from_d] : 0;
    args.dilation[d] = exists ? window.dilation[from_d] : 1;
  }
  args.from = from.const_data_ptr();
  args.to = to.mutable_data_ptr();
  args.cell = const_cast<uint8_t*>(cells.const_data_ptr<uint8_t>());
  return args;
}

// Returns the largest value of each window, and the number of its cell.
std::tuple<Tensor, Tensor> max_pool_with_cells(const Window& window, const Tensor& input) {
  const auto format = input.suggest_memory_format();
  const Tensor x = input.contiguous(format);
  at::DimVector sizes(x.sizes().slice(0, 2));
  for (size_t d = 0; d < window.kernel.size(); ++d) {
    const int64_t padded = x.size(2 + d) + 2 * window.padding[d];
    const int64_t left = padded - window.dilation[d] * (window.kernel[d] - 1) - 1;
    int64_t n = (left + (window.ceil_mode ? window.stride[d] - 1 : 0)) / window.stride[d] + 1;
    // A window that ceil_mode adds must begin within the input or the padding before the input.
    if (window.ceil_mode && (n - 1) * window.stride[d] >= x.size(2 + d) + window.padding[d]) --n;
    sizes.push_back(n);
  }
  const Tensor output = at::empty(sizes, x.options().memory_format(format));
  const Tensor cells = at::empty(sizes, x.options().dtype(at::kByte).memory_format(format));
  const MaxPoolArgs args = max_pool_args(window, x.sizes(), format, x, output, cells);
  if (output.numel() == 0) return {output, cells};
  if (x.is_cuda()) {
    on_cuda<max_pool_cuda>("lean_max_pool", args, x.device());
    return {output, cells};
  }
  const int64_t line_size = args.output[2] * (args.channels_last ? args.n_channels : 1);
  for_items(output.numel() / line_size, output.numel(),
            [&](int64_t begin, int64_t end) { max_pool_cpu(args, begin, end); });
  return {output, cells};
}

Tensor max_pool_grad(const Window& window, const Shape& input, at::MemoryFormat format, const Tensor& output_grad,
                     const Tensor& cells) {
  const Tensor grad = output_grad.contiguous(format), dense_cells = cells.contiguous(format);
  Tensor result = at::empty(input.sizes, input.options.memory_format(format));
  const MaxPoolArgs args = max_pool_args(window, input.sizes, format, grad, result, dense_cells);
  if (result.numel() == 0) return result;
  if (result.is_cuda()) {
    on_cuda<max_pool_grad_cuda>("lean_max_pool", args, result.device());
    return result;
  }
  const int64_t item_size = args.input[2] * (args.channels_last ? args.n_channels : args.input[0] * args.input[1]);
  for_items(result.numel() / item_size, result.numel(),
            [&](int64_t begin, int64_t end) { max_pool_grad_cpu(args, begin, end); });
  return result;
}

struct MaxPoolBackward final : Node {
  Window window;
  Shape input;
  at::MemoryFormat format;

  MaxPoolBackward(Window w, const Tensor& x, const Tensor& cells)
      : window(std::move(w)), input(x), format(x.suggest_memory_format()) {
    save(cells);
  }

  Tensor input_gradient(Tensor grad) override { return max_pool_grad(window, input, format, grad, unpack(0)); }
};

void check_window(const Window& window, const Tensor& input) {
  const size_t n_dims = window.kernel.size();
  TORCH_CHECK_VALUE(input.dim() == static_cast<int64_t>(n_dims) + 2 && (n_dims == 2 || n_dims == 3) &&
                        window.stride.size() == n_dims && window.padding.size() == n_dims &&
                        window.dilation.size() == n_dims,
                    "igfast::lean_max_pool: input must be (batch, channels, *sizes) with 2 or 3 sizes and the window "
                    "must have as many, got ",
                    input.sizes(), " and ", IntArrayRef(window.kernel));
  int64_t n_cells = 1;
  for (size_t d = 0; d < n_dims; ++d) {
    const int64_t extent = (window.kernel[d] - 1) * window.dilation[d] + 1;
    n_cells *= window.kernel[d];
    TORCH_CHECK_VALUE(window.kernel[d] > 0 && window.stride[d] > 0 && window.dilation[d] > 0 &&
                          window.padding[d] >= 0 && window.padding[d] <= window.kernel[d] / 2,
                      "igfast::lean_max_pool: kernel, stride and dilation must be positive and the padding at most "
                      "half of the kernel, got ",
                      IntArrayRef(window.kernel), ", ", IntArrayRef(window.stride), ", ", IntArrayRef(window.dilation),
                      " and ", IntArrayRef(window.padding));
    TORCH_CHECK_VALUE(extent <= input.size(2 + d), "igfast::lean_max_pool: the window must not exceed the input, got ",
                      IntArrayRef(window.kernel), " over ", input.sizes());
  }
  TORCH_CHECK_VALUE(n_cells <= kMostCells, "igfast::lean_max_pool: the window must have at most ", kMostCells,
                    " cells, got ", n_cells);
}

Tensor max_pool(const Tensor& input, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                bool ceil_mode) {
  const Window window{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(), ceil_mode};
  check_window(window, input);
  check_has_kernels("lean_max_pool", input);
  Tensor cells;
  return run(
      input,
      [&] {
        Tensor output;
        std::tie(output, cells) = max_pool_with_cells(window, input);
        return output;
      },
      [&] { return make_node<MaxPoolBackward>(window, input, cells); });
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
        return make_node<AvgPoolBackward>(Window{kernel.vec(), stride.vec(), padding.vec(), {}, ceil_mode},
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

void define_pooling(pybind11::module& m) {
  expose(m, "lean_max_pool", &max_pool);
  expose(m, "lean_avg_pool", &avg_pool);
  expose(m, "lean_adaptive_avg_pool", &adaptive_avg_pool);
  expose(m, "lean_pad", &pad);
}

}  // namespace igfast::lean
