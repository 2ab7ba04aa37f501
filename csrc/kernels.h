// The one contract between the operators (library.cpp, cuda_glue.cpp) and the kernels (cpu/, cuda/): plain structs and
// launcher prototypes. No torch header here or in any kernel file, so a kernel compiles in seconds and can be read
// without knowing PyTorch.
//
// Vocabulary (README.md, "How it works"): a *row* is one path point, the triple (example, alpha, weight). Operands are
// tensors of shape (batch, *features) or (rows, *features); operands.h merges the feature dimensions of all operands
// of an operator into the few that their layouts force, so kernels see at most kMaxDims of them.
#pragma once

#include <cstdint>

namespace igfast {

constexpr int kMaxDims = 16;

// Elements of the innermost dimension that one work item handles at a time. Two float64 stretches of them are 16 KB:
// they stay in a 32 KB first-level cache while the rows of an example stream past (512 and 2048 measured equal or
// slower).
constexpr int64_t kTile = 1024;

enum class DType : int32_t { kHalf, kBFloat16, kFloat, kDouble };

// The feature dimensions, outermost first. The last one is the vector loop; the one before it is a short loop inside a
// tile (the channels when one operand is channels-last and the other is not; 1 otherwise).
struct Features {
  int32_t n_dims;           // at least 2
  int64_t sizes[kMaxDims];  // elements
  int64_t n_outer;          // product of sizes[0 .. n_dims - 2)
  int64_t n_tiles;          // tiles of the innermost dimension
};

struct Operand {
  void* data;
  int64_t batch_stride;       // elements from one example (or row) to the next; 0 when all examples share one
  int64_t strides[kMaxDims];  // elements, one per feature dimension
};

// Rows grouped by example, in row order within each example: what one group adds up, one thread adds up, in one order.
struct RowGroups {
  int64_t n_groups;
  const int64_t* example;  // [n_groups]
  const int64_t* begin;    // [n_groups + 1] into `row`
  const int64_t* row;      // [n_rows]
};

// Rows as they come, in a device's memory.
// A kernel that meets an example outside of [0, n_examples) stops the device (assert).
struct DeviceRows {
  int64_t n_rows;
  int64_t n_examples;
  const int64_t* example;  // [n_rows]
};

// out[r] = baseline[example[r]] + alpha[r] * (x[example[r]] - baseline[example[r]])
template <typename Rows>
struct InterpolateArgsOf {
  DType dtype;  // of x, baseline and out
  Features features;
  Operand x, baseline, out;
  Rows rows;
  const double* alpha;  // [n_rows]
};
using InterpolateArgs = InterpolateArgsOf<RowGroups>;
using CudaInterpolateArgs = InterpolateArgsOf<DeviceRows>;

// acc[example[r]] += weight[r] * grads[r]; finite[r] = 0 where grads[r] holds a NaN or an infinity
template <typename Rows>
struct AccumulateArgsOf {
  DType dtype;  // of grads; acc is float for half, bfloat16 and float, double for double
  Features features;
  Operand acc, grads;
  Rows rows;
  const double* weight;  // [n_rows]
  uint8_t* finite;       // [n_rows] or null
  int64_t* links;        // CUDA's scratch, [n_examples + n_rows]; else null
};
using AccumulateArgs = AccumulateArgsOf<RowGroups>;
using CudaAccumulateArgs = AccumulateArgsOf<DeviceRows>;

// acc[e] *= x[e] - baseline[e]; partial_sums[item] = sum of the item's part of acc, in float64
struct ScaleArgs {
  DType dtype;  // of x and baseline; acc is float for half, bfloat16 and float, double for double
  Features features;
  Operand acc, x, baseline;
  double* partial_sums;  // [batch * n_outer * n_tiles]; on CUDA [scale_scratch_cuda()]
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

// The last step of the gradient of a convolution's input, channels-last: to[cell] += the gradients of that cell in all
// windows of some lines of the output. A line is what lies along the width; lines are numbered (batch, depth, height).
struct WindowArgs {
  DType dtype;  // float or double
  int64_t channels;
  int64_t input[3], output[3];  // depth, height, width
  int64_t kernel[3], stride[3], padding[3];
  int64_t output_begin, output_end;  // lines of the output
  int64_t first_example;             // that these lines are of
  int64_t input_begin, input_end;    // lines of each example's input that they may reach
  const void* windows;               // [output lines][output width][kernel depth, height, width][channels]
  void* to;                          // [batch][depth, height, width][channels]
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

// CPU: work items are numbered (group or example, outer index, tile), the tile fastest; a launcher does [begin, end) of
// them.
inline int64_t items_per_group(const Features& features) { return features.n_outer * features.n_tiles; }

void interpolate_cpu(const InterpolateArgs& args, int64_t begin, int64_t end);
void accumulate_cpu(const AccumulateArgs& args, int64_t begin, int64_t end);
void scale_cpu(const ScaleArgs& args, int64_t begin, int64_t end);

// Work items are blocks of kGateBlock elements.
void gate_cpu(const GateArgs& args, int64_t begin, int64_t end);
void gate_grad_cpu(const GateArgs& args, int64_t begin, int64_t end);

// Work items of the forward function are lines of the output: (batch, channel unless those are last, depth, height),
// the height fastest; of the gradient lines of the input, (batch, depth, height), or planes, (batch, channel).
void max_pool_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);
void max_pool_grad_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end);

// Work items are (example, line of the input), the line fastest; both count from the first that is reached.
void add_windows_cpu(const WindowArgs& args, int64_t begin, int64_t end);

// Work items are tiles of the band. The first transforms patches of the image to tiles, B^T d B; the second products of
// tiles to 2x2 cells of an image whose first ones are at its corner, A^T m A.
void winograd_tiles_cpu(const WinogradArgs& args, int64_t begin, int64_t end);
void winograd_image_cpu(const WinogradArgs& args, int64_t begin, int64_t end);

// CUDA: a launcher puts its work on `stream`, a cudaStream_t of the current device, and does not wait for it. It
// returns null or what CUDA says went wrong. There is work to do: no size is 0. All arrays are in the device's memory.
const char* interpolate_cuda(const CudaInterpolateArgs& args, void* stream);
const char* accumulate_cuda(const CudaAccumulateArgs& args, void* stream);

// Also writes sums[e], the sum of acc[e], [n_examples].
const char* scale_cuda(const ScaleArgs& args, int64_t n_examples, double* sums, void* stream);
int64_t scale_scratch_cuda(const Features& features, int64_t n_examples);

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
