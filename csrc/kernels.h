// The contract between the operators (library.cpp, lean/) and the kernels (cpu/, cuda/): plain structs and launcher
// prototypes. Neither this header nor any kernel includes a torch header, so a kernel compiles in seconds.
//
// A *row* is one path point: (example, alpha, weight). Tensors of shape (batch, *features) and (rows, *features) are
// dense, and all tensors of an operator share one memory order. So an example or a row is n_features consecutive
// elements.
#pragma once

#include <cstdint>

namespace igfast {

// Features of one work item: the accumulators stay in a 32 KB first-level cache while the rows stream past.
constexpr int64_t kStretch = 1024;

enum class DType : int32_t { kHalf, kBFloat16, kFloat, kDouble };

// The baselines of all examples. The baseline of example e begins at data + e * stride elements. If `is_number`, data
// is one element, the baseline of every feature.
struct Baseline {
  const void* data;
  int64_t stride;  // n_features, or 0 where all examples share one
  bool is_number;
};

// out[r] = baseline[example[r]] + alpha[r] * (x[example[r]] - baseline[example[r]])
struct InterpolateArgs {
  DType dtype;  // of x, baseline and out
  int64_t n_rows, n_examples, n_features;
  const void* x;  // [n_examples][n_features]
  Baseline baseline;
  const int64_t* example;  // [n_rows]
  const double* alpha;     // [n_rows]
  void* out;               // [n_rows][n_features]
};

// acc[example[r]] += weight[r] * grads[r]; finite[r] = 0 where grads[r] holds a NaN or an infinity
struct AccumulateArgs {
  DType dtype;  // of grads; acc is float for half, bfloat16 and float, double for double
  int64_t n_rows, n_examples, n_features;
  void* acc;                      // [n_examples][n_features]
  const void* grads;              // [n_rows][n_features]
  const int64_t* example;         // [n_rows]
  const double* weight;           // [n_rows]
  uint8_t* finite;                // [n_rows] or null
  int64_t n_parts;                // CPU: into how many parts the examples are split for threads
  int64_t* links;                 // CUDA: scratch, [n_examples + n_rows]
  const int64_t *sorted, *order;  // CUDA: the examples, ascending, and their rows, [n_rows]; or both null, for few rows
};

// acc[e] *= x[e] - baseline[e]
struct ScaleArgs {
  DType dtype;  // of x and baseline; acc is float for half, bfloat16 and float, double for double
  int64_t n_examples, n_features;
  void* acc;      // [n_examples][n_features]
  const void* x;  // [n_examples][n_features]
  Baseline baseline;
};

// Activations with gradient 1 where a gate is open, and `slope` elsewhere (0 except for leaky_relu).
enum class Activation : int32_t {
  kRelu,       // open unless x <= 0, so that a NaN passes, as in PyTorch; elsewhere 0
  kHardtanh,   // open where low < x < high (on CUDA for a NaN too, as in PyTorch); elsewhere the nearer bound
  kLeakyRelu,  // open where x > 0; elsewhere x * slope
  kThreshold,  // open unless x <= low; elsewhere high
};

constexpr int64_t kGateBlock = 512;  // elements whose gates take kGateBytes bytes, on the CPU
constexpr int64_t kGateBytes = kGateBlock / 8;

// Forward: to = activation(from), bits = gates. Backward: to = from where a gate is open, from * slope elsewhere.
// Elements are numbered in memory order; `to` may be `from`.
struct GateArgs {
  DType dtype;  // of from and to
  int64_t n_elements;
  const void* from;
  void* to;
  uint8_t* bits;  // [ceil(n_elements / kGateBlock) * kGateBytes]; CPU and CUDA order bits differently
  Activation activation;
  double low, high, slope;
};

// CUDA only. Forward: to = the batch norm of from in eval mode. Backward: from = the gradient of the output, to = that
// of the input. `to` may be `from`.
struct BatchNormArgs {
  DType dtype;         // of all arrays
  bool channels_last;  // consecutive elements are channels of a position, else positions of a channel
  int64_t n_channels;
  int64_t n_positions;  // of one channel in one example
  int64_t n_elements;
  const void* from;
  void* to;
  const void *weight, *bias, *mean, *variance;  // [n_channels] each; weight and bias may be null
  double eps;
};

constexpr int kMostCells = 256;  // the largest pooling window: a byte numbers its cells

// A max pool. Each window is no wider than the input and has a cell in the input. Forward: to = the largest value of
// each window, cell = the number of that value's cell. Backward: from = the gradient of the output, to = that of the
// input. Arrays are dense, in the order (batch, channels, depth, height, width) or, if channels_last, (batch, depth,
// height, width, channels).
struct MaxPoolArgs {
  DType dtype;  // of from and to
  bool channels_last;
  int64_t n_batch, n_channels;
  int64_t input[3], output[3];  // depth, height, width
  int64_t kernel[3], stride[3], padding[3], dilation[3];
  const void* from;
  void* to;
  uint8_t* cell;  // of the output's shape
};

// Winograd's F(2x2, 3x3): each patch of 4x4 image cells, two cells apart, gives 2x2 cells of the result.
struct WinogradArgs {
  DType dtype;  // float or double
  int64_t n_channels;
  int64_t height, width;           // of the image
  int64_t tiles_high, tiles_wide;  // of an example
  int64_t before[2];               // cells by which the first patch begins above and left of the image
  int64_t first_tile, n_tiles;     // the band in `tiles`; tiles are numbered (example, row, column), the column fastest
  void* image;                     // [batch][height][width][n_channels]
  void* tiles;                     // [16][n_tiles][n_channels]
};

// CPU: a launcher runs the work items [begin, end).
inline int64_t n_stretches(int64_t n_features) { return (n_features + kStretch - 1) / kStretch; }

// Work items are (row, stretch) to interpolate, (example, stretch) to scale, and (part, stretch) to accumulate. A
// stretch has at most kStretch consecutive features, and is the fastest.
// Part p of P has the examples from p * n_examples / P to (p + 1) * n_examples / P.
void interpolate_cpu(const InterpolateArgs& args, int64_t begin, int64_t end);
void scale_cpu(const ScaleArgs& args, int64_t begin, int64_t end);
void accumulate_cpu(const AccumulateArgs& args, int64_t begin, int64_t end);

// Work items are blocks of kGateBlock elements.
void gate_cpu(const GateArgs& args, int64_t begin, int64_t end);
void gate_grad_cpu(const GateArgs& args, int64_t begin, int64_t end);

// Forward, work items are lines of the output: (batch, depth, height) if channels_last, else (batch, channel, depth,
// height). Backward: lines of the input if channels_last, else planes, (batch, channel).
void max_pool_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);
void max_pool_grad_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);

// Work items are tiles of the band. winograd_tiles_cpu computes tiles from patches of the image, B^T d B.
// winograd_image_cpu computes 2x2 image cells, from the corner on, from products of tiles, A^T m A.
void winograd_tiles_cpu(const WinogradArgs& args, int64_t begin, int64_t end);
void winograd_image_cpu(const WinogradArgs& args, int64_t begin, int64_t end);

// CUDA: a launcher enqueues its work on `stream`, a cudaStream_t of the current device. The launcher returns null or
// CUDA's error message. No size is 0. All arrays are in device memory. An example outside of [0, n_examples) fails an
// assert on the device.
const char* interpolate_cuda(const InterpolateArgs& args, void* stream);
const char* accumulate_cuda(const AccumulateArgs& args, void* stream);
const char* scale_cuda(const ScaleArgs& args, void* stream);

const char* gate_cuda(const GateArgs& args, void* stream);
const char* gate_grad_cuda(const GateArgs& args, void* stream);
const char* batch_norm_cuda(const BatchNormArgs& args, void* stream);
const char* batch_norm_grad_cuda(const BatchNormArgs& args, void* stream);
const char* max_pool_cuda(const MaxPoolArgs& args, void* stream);
const char* max_pool_grad_cuda(const MaxPoolArgs& args, void* stream);

// The instruction sets that the CPU kernels are compiled for. cpu_isa() returns the one to use on this machine.
enum class Isa : int32_t { kBaseline, kAvx2, kAvx512 };
Isa cpu_isa();

}  // namespace igfast
