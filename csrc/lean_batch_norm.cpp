// Lean execution of batch normalisation in eval mode: an affine map of each channel, which keeps its constants alone.
//
// What overwrites its input has to round as PyTorch's does. That computes a scale and a shift for each channel and then
// x * scale + shift, in one rounding or two, as its build has it. So the scales and shifts are asked of it, by inputs
// of 1 and 0, and the rounding is found out once by an example; where neither is PyTorch's, its own results are copied
// over the input piece by piece. On CUDA PyTorch has several formulas, and cuDNN one of its own: which it is, examples
// say, and where none is theirs nothing is overwritten.
#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>
#include <utility>

#include "cuda_glue.h"
#include "kernels.h"
#include "lean.h"
#include "tensors.h"

namespace igfast::lean {

void NormNode::save_norm(const Tensor& variance, const optional<Tensor>& weight, double eps) {
  const size_t first = saved.size();
  save(variance);
  if (weight.has_value()) save(*weight);
  has_norm_ = true;
  has_weight_ = weight.has_value();
  first_ = first;
  eps_ = eps;
}

namespace {

// weight / sqrt(variance + eps), as the operators compute it, but without the few microseconds of each.
template <typename T>
Tensor scale_on_cpu(const Tensor& variance, const optional<Tensor>& weight, double eps) {
  Tensor scale = at::empty(variance.sizes(), variance.options().memory_format(at::MemoryFormat::Contiguous));
  const auto of_variance = variance.accessor<T, 1>();
  auto* to = scale.mutable_data_ptr<T>();
  for (int64_t c = 0; c < variance.numel(); ++c) to[c] = 1 / std::sqrt(of_variance[c] + static_cast<T>(eps));
  if (weight.has_value()) {
    const auto of_weight = weight->accessor<T, 1>();
    for (int64_t c = 0; c < variance.numel(); ++c) to[c] *= of_weight[c];
  }
  return scale;
}

Tensor scale_of(const Tensor& variance, const optional<Tensor>& weight, double eps) {
  const auto dtype = variance.scalar_type();
  const bool are_alike = !weight.has_value() || (weight->scalar_type() == dtype && weight->sizes() == variance.sizes());
  const bool has_kernel = dtype == at::kFloat || dtype == at::kDouble;
  if (has_kernel && are_alike && variance.is_cpu() && variance.dim() == 1 && !at::isTensorSubclassLike(variance)) {
    return dtype == at::kFloat ? scale_on_cpu<float>(variance, weight, eps)
                               : scale_on_cpu<double>(variance, weight, eps);
  }
  Tensor scale = at::rsqrt(variance + eps);
  return weight.has_value() ? scale.mul_(*weight) : scale;
}

}  // namespace

Tensor NormNode::scale(int64_t dim, int64_t n_dims) const {
  const auto weight = has_weight_ ? optional<Tensor>(unpack(first_ + 1)) : std::nullopt;
  const Tensor scale = scale_of(unpack(first_), weight, eps_);
  at::DimVector shape(n_dims, 1);
  shape[dim] = -1;
  return scale.view(shape);
}

Tensor NormNode::scaled(Tensor grad) const {
  const Tensor factor = scale(1, grad.dim());
  return is_ours(grad) ? grad.mul_(factor) : grad.mul(factor);
}

namespace {

struct BatchNormBackward final : NormNode {
  BatchNormBackward(const Tensor& variance, const optional<Tensor>& weight, double eps) {
    save_norm(variance, weight, eps);
  }

  Tensor input_gradient(Tensor grad) override { return scaled(std::move(grad)); }
};

// The constants of a batch norm, or of some of its channels.
struct Norm {
  optional<Tensor> weight, bias;
  Tensor mean, variance;
  double eps;

  Tensor operator()(const Tensor& x) const {
    return at::batch_norm(x, weight, bias, mean, variance, /*training=*/false, /*momentum=*/0.0, eps,
                          at::globalContext().userEnabledCuDNN());
  }

  Norm of_channels(int64_t begin, int64_t n) const {
    const auto part = [&](const optional<Tensor>& of) {
      return of.has_value() ? optional<Tensor>(of->narrow(0, begin, n)) : of;
    };
    return {part(weight), part(bias), *part(mean), *part(variance), eps};
  }

  // Whether all the constants there are satisfy `predicate`.
  template <typename Predicate>
  bool all(const Predicate& predicate) const {
    return predicate(mean) && predicate(variance) && (!weight.has_value() || predicate(*weight)) &&
           (!bias.has_value() || predicate(*bias));
  }

  // What PyTorch multiplies by. Zeros are negative so that none loses its sign in a sum: -0 + -0 is -0.
  Tensor scale() const {
    const Tensor zeros = at::full_like(mean, -0.0);
    const Norm centred{weight, zeros, zeros, variance, eps};
    return centred(at::ones({1, mean.numel()}, mean.options()));
  }

  // What it adds then; the inputs are zeros that the scales make negative.
  Tensor shift(const Tensor& scale) const { return (*this)(at::copysign(at::zeros_like(scale), scale.neg())); }
};

enum class Rounding { kFused, kSeparate, kUnknown };

bool is_channels_last(const Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) || x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
}

// The constants of a few channels as often as fill whole vectors.
Tensor repeated(const Tensor& row) {
  constexpr int64_t kMostLanes = 16, kLongEnough = 256;
  const int64_t n = row.numel();
  const int64_t whole = n < kLongEnough ? std::lcm(n, kMostLanes) : n;
  const int64_t times = std::max<int64_t>(1, kLongEnough / whole);
  return row.repeat({1, whole / n * times});
}

template <typename T>
bool are_finite(const Tensor& tensor) {
  const auto* data = tensor.const_data_ptr<T>();
  return std::all_of(data, data + tensor.numel(), [](T value) { return std::isfinite(value); });
}

// Overwrites x, contiguous or channels-last and not empty; false if it cannot. A scale that is not finite cannot be
// asked for: it makes a NaN of the shift.
bool overwrite(Tensor& x, const Norm& norm, Rounding rounding) {
  const bool is_double = x.scalar_type() == at::kDouble;
  const Tensor scale = norm.scale();
  if (!(is_double ? are_finite<double>(scale) : are_finite<float>(scale))) return false;
  const Tensor shift = norm.shift(scale);
  AffineArgs args{};
  args.dtype = dtype_of("lean_batch_norm_", "x", x);
  args.is_fused = rounding == Rounding::kFused;
  args.channels_last = x.dim() == 2 || is_channels_last(x);
  args.n_channels = x.size(1);
  args.n_elements = x.numel();
  const Tensor scales = args.channels_last ? repeated(scale) : scale;
  const Tensor shifts = args.channels_last ? repeated(shift) : shift;
  args.item_size = args.channels_last ? scales.numel() : x.numel() / x.size(0) / x.size(1);
  args.x = x.mutable_data_ptr();
  args.scale = scales.const_data_ptr();
  args.shift = shifts.const_data_ptr();
  const int64_t n_items = (args.n_elements + args.item_size - 1) / args.item_size;
  for_items(n_items, args.n_elements, [&](int64_t begin, int64_t end) { affine_cpu(args, begin, end); });
  return true;
}

// How PyTorch rounds, by an example in both layouts whose sizes fill no vectors.
Rounding found_rounding(at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
  const auto numbers = [&](int64_t n, double factor) { return at::arange(n, options).mul_(factor).sin_(); };
  const Norm norm{numbers(37, 0.7), numbers(37, 1.1), numbers(37, 1.3), numbers(37, 1.7).add_(1.5), 1e-5};
  const Tensor x = numbers(2 * 37 * 5 * 23, 0.9).view({2, 37, 5, 23});
  for (const auto rounding : {Rounding::kFused, Rounding::kSeparate}) {
    bool is_this = true;
    for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
      const Tensor example = x.contiguous(format);
      Tensor overwritten = example.clone();
      is_this = is_this && overwrite(overwritten, norm, rounding) && at::equal(overwritten, norm(example));
    }
    if (is_this) return rounding;
  }
  return Rounding::kUnknown;
}

Rounding rounding_of(at::ScalarType dtype) {
  static const Rounding of_float = found_rounding(at::kFloat), of_double = found_rounding(at::kDouble);
  return dtype == at::kDouble ? of_double : of_float;
}

// Bytes that stay in the cache between PyTorch's kernel and the copy back.
constexpr int64_t kPieceBytes = 1 << 19;

// Overwrites x piece by piece, along the channels or, if those are last in memory, along the height (or depth).
void copy_over(Tensor& x, const Norm& norm) {
  const int64_t along = x.dim() > 2 && x.stride(1) == 1 ? 2 : 1;
  for (int64_t e = 0; e < x.size(0); ++e) {
    const Tensor example = x.narrow(0, e, 1);  // (1, channels, *sizes)
    const int64_t bytes_each = std::max<int64_t>(1, static_cast<int64_t>(example.nbytes()) / example.size(along));
    const int64_t step = std::max<int64_t>(1, kPieceBytes / bytes_each);
    for (int64_t begin = 0; begin < example.size(along); begin += step) {
      const int64_t n = std::min(step, example.size(along) - begin);
      Tensor piece = example.narrow(along, begin, n);
      piece.copy_((along == 1 ? norm.of_channels(begin, n) : norm)(piece));
    }
  }
}

// PyTorch takes another formula where any of them is not dense, and refuses constants of another length.
bool is_dense(const Tensor& x, const Norm& norm) {
  return (x.is_contiguous() || is_channels_last(x)) &&
         norm.all([&](const Tensor& of) { return of.is_contiguous() && of.numel() == x.size(1); });
}

// Constants of another type than x are computed with in float.
bool has_kernel(const Tensor& x, const Norm& norm) {
  const auto dtype = x.scalar_type();
  return x.is_cpu() && !at::isTensorSubclassLike(x) && (dtype == at::kFloat || dtype == at::kDouble) && x.numel() > 0 &&
         norm.all([&](const Tensor& of) { return of.is_cpu() && of.scalar_type() == dtype; });
}

// How PyTorch computes a batch norm on CUDA.
struct Formula {
  bool is_known;
  NormForm form;
  bool by_rsqrt;  // the inverse deviation, else by a square root and a division
};

// On CUDA, as the formula reads them: in float, or in double for double.
Tensor constants_of(const Norm& norm, Formula formula, at::ScalarType math) {
  const auto in_math = [&](const optional<Tensor>& of, double otherwise) {
    return of.has_value() ? of->to(math) : at::full_like(norm.mean, otherwise, norm.mean.options().dtype(math));
  };
  const Tensor mean = norm.mean.to(math), variance = norm.variance.to(math) + norm.eps;
  const Tensor inverse = formula.by_rsqrt ? at::rsqrt(variance) : at::reciprocal(at::sqrt(variance));
  const Tensor weight = in_math(norm.weight, 1), bias = in_math(norm.bias, 0);
  const Tensor scale = weight * inverse;
  switch (formula.form) {
    case NormForm::kScaleShift: return at::stack({scale, bias - mean * scale});
    case NormForm::kCentredScaled: return at::stack({mean, scale, bias});
    default: return at::stack({mean, inverse, weight, bias});
  }
}

void overwrite_on_cuda(Tensor& x, const Norm& norm, Formula formula) {
  const Tensor constants = constants_of(norm, formula, x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  NormArgs args{};
  args.dtype = dtype_of("lean_batch_norm_", "x", x);
  args.form = formula.form;
  args.channels_last = x.dim() == 2 || !x.is_contiguous();
  args.n_channels = x.size(1);
  args.n_positions = x.numel() / x.size(0) / x.size(1);
  args.n_elements = x.numel();
  args.x = x.mutable_data_ptr();
  args.constants = constants.const_data_ptr();
  normalise_on_cuda("lean_batch_norm_", args, x.device());
}

// Tensors of the dtypes, layout and constants of others: 37 channels fill no vectors.
std::pair<Tensor, Norm> example_like(const Tensor& x, const Norm& norm, int64_t channels) {
  const auto numbers = [](int64_t n, double factor, const Tensor& like) {
    return at::arange(n, like.options().dtype(at::kDouble)).mul_(factor).sin_().to(like.scalar_type());
  };
  const auto some = [&](const optional<Tensor>& like, double factor) {
    return like.has_value() ? optional<Tensor>(numbers(channels, factor, *like)) : like;
  };
  const Norm example{some(norm.weight, 0.7), some(norm.bias, 1.1), numbers(channels, 1.3, norm.mean),
                     numbers(channels, 1.7, norm.variance).add_(1.5), norm.eps};
  at::DimVector sizes(x.dim(), channels == 37 ? 5 : 8);
  sizes[1] = channels;
  const Tensor values = numbers(c10::multiply_integers(sizes), 0.9, x).view(sizes);
  return {values.contiguous(x.suggest_memory_format()), example};
}

// By examples.
Formula found_formula(const Tensor& x, const Norm& norm) {
  constexpr NormForm kForms[] = {NormForm::kCentredFirst, NormForm::kWeightFirst, NormForm::kCentredScaled,
                                 NormForm::kScaleShift};
  for (const auto form : kForms) {
    for (const bool by_rsqrt : {true, false}) {
      const Formula formula{true, form, by_rsqrt};
      bool is_this = true;
      for (const int64_t channels : {37, 64}) {
        auto [example, of_example] = example_like(x, norm, channels);
        const Tensor wanted = of_example(example);
        overwrite_on_cuda(example, of_example, formula);
        is_this = is_this && at::equal(example, wanted);
      }
      if (is_this) return formula;
    }
  }
  return {false, NormForm::kScaleShift, true};
}

// Found out once for all that PyTorch's choice depends on.
Formula formula_of(const Tensor& x, const Norm& norm) {
  using Key =
      std::tuple<at::DeviceIndex, at::ScalarType, at::ScalarType, int64_t, at::MemoryFormat, bool, bool, bool, double>;
  static std::mutex mutex;
  static std::map<Key, Formula> known;
  const Key key{x.device().index(),
                x.scalar_type(),
                norm.mean.scalar_type(),
                x.dim(),
                x.suggest_memory_format(),
                norm.weight.has_value(),
                norm.bias.has_value(),
                at::globalContext().userEnabledCuDNN(),
                norm.eps};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  return found != known.end() ? found->second : known.emplace(key, found_formula(x, norm)).first->second;
}

// Not beyond what PyTorch gives to cuDNN.
bool has_cuda_kernel(const Tensor& x, const Norm& norm) {
  constexpr int64_t kMostExamples = 65535, kMostElements = std::numeric_limits<int32_t>::max();
  const auto dtype = x.scalar_type(), of_constants = norm.mean.scalar_type();
  const bool tells_apart = dtype == at::kFloat || dtype == at::kDouble;  // formulas, by a few examples
  return kHasCuda && x.is_cuda() && !at::isTensorSubclassLike(x) && tells_apart && x.dim() >= 2 && x.numel() > 0 &&
         x.size(0) <= kMostExamples && x.numel() < kMostElements && is_dense(x, norm) &&
         norm.all([&](const Tensor& of) { return of.device() == x.device() && of.scalar_type() == of_constants; }) &&
         formula_of(x, norm).is_known;
}

// Whether `batch_norm_` needs no copy of its input.
bool overwrites(const Tensor& x, const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& mean,
                const Tensor& variance, double eps) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return x.is_cpu() || has_cuda_kernel(x, {weight, bias, mean, variance, eps});
}

void normalise(Tensor& x, const Norm& norm) {
  if (x.is_cuda() && has_cuda_kernel(x, norm)) {
    overwrite_on_cuda(x, norm, formula_of(x, norm));
    return;
  }
  if (static_cast<int64_t>(x.nbytes()) <= kPieceBytes || !is_dense(x, norm)) {
    x.copy_(norm(x));
    return;
  }
  const Rounding rounding = has_kernel(x, norm) ? rounding_of(x.scalar_type()) : Rounding::kUnknown;
  if (rounding == Rounding::kUnknown || !overwrite(x, norm, rounding)) copy_over(x, norm);
}

Tensor batch_norm(const Tensor& input, const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& mean,
                  const Tensor& variance, double eps) {
  return run(
      input, [&] { return Norm{weight, bias, mean, variance, eps}(input); },
      [&] { return make_node<BatchNormBackward>(variance, weight, eps); }, weight, bias);
}

Tensor& batch_norm_(Tensor& x, const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& mean,
                    const Tensor& variance, double eps) {
  TORCH_CHECK_VALUE(x.dim() >= 2, "igfast::lean_batch_norm_: x must be (batch, channels, *sizes), got ", x.sizes());
  const Norm norm{weight, bias, mean, variance, eps};
  const auto forward = [&] { normalise(x, norm); };
  auto* convolution = own_node<NormNode>(x);
  if (convolution == nullptr || !convolution->takes_in(norm.variance, norm.weight)) {
    return run_in_place(x, forward, [&] { return make_node<BatchNormBackward>(variance, weight, eps); }, weight, bias);
  }
  if (overwrite_below_autograd(x, forward)) {
    convolution->save_norm(variance, weight, eps);
    for (auto& edge : torch::autograd::collect_next_edges(weight, bias)) convolution->add_next_edge(std::move(edge));
  }
  return x;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def(
      "lean_batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps) -> Tensor");
  m.def(
      "lean_batch_norm_(Tensor(a!) x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps) -> "
      "Tensor(a!)");
  m.def(
      "lean_batch_norm_overwrites(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps) -> "
      "bool");
}

TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) {
  m.impl("lean_batch_norm", &batch_norm);
  m.impl("lean_batch_norm_", &batch_norm_);
  m.impl("lean_batch_norm_overwrites", &overwrites);
}

}  // namespace igfast::lean
