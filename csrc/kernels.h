// The one contract between the operators (library.cpp, lean/) and the kernels (cpu/, cuda/): plain structs and
// launcher prototypes. No torch header here or in any kernel file, so a kernel compiles in seconds and can be read
// without knowing PyTorch.
//
// A *row* is one path point: the triple (example, alpha, weight). Tensors of shape (batch, *features) and
// (rows, *features) are dense here, and all of an operator have one memory order. So each example and each row is
// n_features elements, one after the other.
#pragma once

#include <cstdint>

namespace igfast {

// Features that one work item handles at a time. The accumulator's stretch stays in a 32 KB first-level cache while the
// rows stream past.
constexpr int64_t kTile = 1024;

enum class DType : int32_t { kHalf, kBFloat16, kFloat, kDouble };

// A baseline of all examples. Example e has its own at data + e * stride elements; `is_number` means that data is one
// element, the baseline of all features.
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
  void* acc;               // [n_examples][n_features]
  const void* grads;       // [n_rows][n_features]
  const int64_t* example;  // [n_rows]
  const double* weight;    // [n_rows]
  uint8_t* finite;         // [n_rows] or null
  int64_t n_parts;         // CPU: parts of the examples that threads share
  int64_t* links;          // CUDA: scratch, [n_examples + n_rows]
};

// acc[e] *= x[e] - baseline[e]
struct ScaleArgs {
  DType dtype;  // of x and baseline; acc is float for half, bfloat16 and float, double for double
  int64_t n_examples, n_features;
  void* acc;      // [n_examples][n_features]
  const void* x;  // [n_examples][n_features]
  Baseline baseline;
};

// Activations whose gradient is 1 where a gate is open and `slope` elsewhere (0 but for leaky_relu).
enum class Activation : int32_t {
  kRelu,       // open where not x <= 0, so that a NaN passes, as in PyTorch; elsewhere 0
  kHardtanh,   // open where low < x < high (on CUDA for a NaN too, as in PyTorch); elsewhere the nearer bound
  kLeakyRelu,  // open where x > 0; elsewhere x * slope
  kThreshold,  // open where not x <= low; elsewhere high
};

constexpr int64_t kGateBlock = 512;  // elements that share kGateBytes bytes of bits, on the CPU
constexpr int64_t kGateBytes = kGateBlock / 8;

// Forward: to = activation(from), bits = gates. Backward: to = from where a gate is open, from * slope elsewhere.
// Elements are numbered in memory order; `to` may be `from`.
struct GateArgs {
  DType dtype;  // of from and to
  int64_t n_elements;
  const void* from;
  void* to;
  uint8_t* bits;  // [ceil(n_elements / kGateBlock) * kGateBytes]; their order is the device's
  Activation activation;
  double low, high, slope;
};

// CUDA. Forward: to = the batch norm of from in eval mode. Backward: to = the gradient of the input, from = that of the
// output. `to` may be `from`.
struct BatchNormArgs {
  DType dtype;         // of all arrays
  bool channels_last;  // the channels of a position lie side by side, else the positions of a channel
  int64_t n_channels;
  int64_t n_positions;  // of a channel in an example
  int64_t n_elements;
  const void* from;
  void* to;
  const void *weight, *bias, *mean, *variance;  // [n_channels] each; weight and bias may be null
  double eps;
};

constexpr int kMostCells = 256;  // of a pooling window, so that a byte can number them

// Windows of a max pool, no wider than the input, each of which has a cell in it. Forward: to = the largest cell of
// each window, cell = its number in the window. Backward: to = the gradient of the input, from = that of the output.
// Arrays are dense, of order (batch, channels, depth, height, width) or, if channels_last, (batch, depth, height,
// width, channels).
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

// Winograd's F(2x2, 3x3): an image in patches of 4x4 cells, two apart, each of which gives 2x2 cells of the result.
struct WinogradArgs {
  DType dtype;  // float or double
  int64_t n_channels;
  int64_t height, width;           // of the image
  int64_t tiles_high, tiles_wide;  // of an example
  int64_t before[2];               // cells by which the first patch begins above and left of the image
  int64_t first_tile, n_tiles;     // of a band, which `tiles` holds: (example, row, column), the column fastest
  void* image;                     // [batch][height][width][n_channels]
  void* tiles;                     // [16][n_tiles][n_channels]
};

// CPU: a launcher does the work items [begin, end).
inline int64_t n_tiles(int64_t n_features) { return (n_features + kTile - 1) / kTile; }

// Work items are (row, tile) and (example, tile), the tile fastest; for accumulate (part, tile), where part p of P has
// the examples from p * n_examples / P to (p + 1) * n_examples / P.
void interpolate_cpu(const InterpolateArgs& args, int64_t begin, int64_t end);
void scale_cpu(const ScaleArgs& args, int64_t begin, int64_t end);
void accumulate_cpu(const AccumulateArgs& args, int64_t begin, int64_t end);

// Work items are blocks of kGateBlock elements.
void gate_cpu(const GateArgs& args, int64_t begin, int64_t end);
void gate_grad_cpu(const GateArgs& args, int64_t begin, int64_t end);

// Work items of the forward function are lines of the output: (batch, channel unless those are last, depth, height),
// the height fastest; of the gradient lines of the input, (batch, depth, height), or planes, (batch, channel).
void max_pool_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);
void max_pool_grad_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);

// Work items are tiles of the band. The first transforms patches of the image to tiles, B^T d B; the second products of
// tiles to 2x2 cells of an image whose first ones are at its corner, A^T m A.
void winograd_tiles_cpu(const WinogradArgs& args, int64_t begin, int64_t end);
void winograd_image_cpu(const WinogradArgs& args, int64_t begin, int64_t end);

// CUDA: a launcher puts its work on `stream`, a cudaStream_t of the current device, and does not wait for it. It
// returns null or what CUDA says went wrong. There is work to do: no size is 0. All arrays are in the device's memory.
// A kernel that meets an example outside of [0, n_examples) stops the device (assert).
const char* interpolate_cuda(const InterpolateArgs& args, void* stream);
const char* accumulate_cuda(const AccumulateArgs& args, void* stream);
const char* scale_cuda(const ScaleArgs& args, void* stream);

const char* gate_cuda(const GateArgs& args, void* stream);
const char* gate_grad_cuda(const GateArgs& args, void* stream);
const char* batch_norm_cuda(const BatchNormArgs& args, void* stream);
const char* batch_norm_grad_cuda(const BatchNormArgs& args, void* stream);
const char* max_pool_cuda(const MaxPoolArgs& args, void* stream);
const char* max_pool_grad_cuda(const MaxPoolArgs& args, void* stream);

// The instruction sets that the CPU kernels are compiled for; cpu_isa() is the one that this machine runs.
enum class Isa : int32_t { kBaseline, kAvx2, kAvx512 };
Isa cpu_isa();

}  // namespace igfast
