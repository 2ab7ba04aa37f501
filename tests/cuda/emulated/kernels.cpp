// csrc/cuda as one library for the CPU, with names that ctypes finds.
#include "../../../csrc/cuda/accumulate_cuda.cu"
#include "../../../csrc/cuda/gate_cuda.cu"
#include "../../../csrc/cuda/interpolate_cuda.cu"
#include "../../../csrc/cuda/normalise_cuda.cu"
#include "../../../csrc/cuda/pool_cuda.cu"
#include "../../../csrc/cuda/scale_cuda.cu"

extern "C" {
const char* interpolate(const igfast::CudaInterpolateArgs* args) { return igfast::interpolate_cuda(*args, nullptr); }
const char* accumulate(const igfast::CudaAccumulateArgs* args) { return igfast::accumulate_cuda(*args, nullptr); }
int64_t scale_scratch(const igfast::Features* features, int64_t n_examples) {
  return igfast::scale_scratch_cuda(*features, n_examples);
}
const char* scale(const igfast::ScaleArgs* args, int64_t n_examples, double* sums) {
  return igfast::scale_cuda(*args, n_examples, sums, nullptr);
}
const char* gate(const igfast::GateArgs* args) { return igfast::gate_cuda(*args, nullptr); }
const char* gate_grad(const igfast::GateArgs* args) { return igfast::gate_grad_cuda(*args, nullptr); }
const char* normalise(const igfast::NormArgs* args) { return igfast::normalise_cuda(*args, nullptr); }
const char* pool_cells_from_positions(const igfast::PoolArgs* args) {
  return igfast::pool_cells_from_positions_cuda(*args, nullptr);
}
const char* pool_positions_from_cells(const igfast::PoolArgs* args) {
  return igfast::pool_positions_from_cells_cuda(*args, nullptr);
}
}
