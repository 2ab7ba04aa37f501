// The one contract between the operators (library.cpp) and the kernels (cpu/, later cuda/): plain structs and
// launcher prototypes. No torch header here or in any kernel file, so a kernel compiles in seconds and can be read
// without knowing PyTorch.
//
// Vocabulary (README.md, "How it works"): a *row* is one path point, the triple (example, alpha, weight). Operands are
// tensors of shape (batch, *features) or (rows, *features); library.cpp merges the feature dimensions of all operands
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

// out[r] = baseline[example[r]] + alpha[r] * (x[example[r]] - baseline[example[r]])
struct InterpolateArgs {
  DType dtype;  // of x, baseline and out
  Features features;
  Operand x, baseline, out;
  RowGroups rows;
  const double* alpha;  // [n_rows]
};

// acc[example[r]] += weight[r] * grads[r]; finite[r] = 0 where grads[r] holds a NaN or an infinity
struct AccumulateArgs {
  DType dtype;  // of grads; acc is float for half, bfloat16 and float, double for double
  Features features;
  Operand acc, grads;
  RowGroups rows;
  const double* weight;  // [n_rows]
  uint8_t* finite;       // [n_rows] or null
};

// acc[e] *= x[e] - baseline[e]; partial_sums[item] = sum of the item's part of acc, in float64
struct ScaleArgs {
  DType dtype;  // of x and baseline; acc is float for half, bfloat16 and float, double for double
  Features features;
  Operand acc, x, baseline;
  double* partial_sums;  // [batch * n_outer * n_tiles]
};

// Work items are numbered (group or example, outer index, tile), the tile fastest; a launcher does [begin, end) of
// them.
inline int64_t items_per_group(const Features& features) { return features.n_outer * features.n_tiles; }

void interpolate_cpu(const InterpolateArgs& args, int64_t begin, int64_t end);
void accumulate_cpu(const AccumulateArgs& args, int64_t begin, int64_t end);
void scale_cpu(const ScaleArgs& args, int64_t begin, int64_t end);

// The instruction sets that the CPU kernels are compiled for; cpu_isa() is the one that this machine runs.
enum class Isa : int32_t { kBaseline, kAvx2, kAvx512 };
Isa cpu_isa();

}  // namespace igfast
