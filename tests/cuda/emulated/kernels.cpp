// csrc/cuda as one library for the CPU, with names that ctypes finds.
#include "../../../csrc/cuda/accumulate_cuda.cu"
#include "../../../csrc/cuda/batch_norm_cuda.cu"
#include "../../../csrc/cuda/gate_cuda.cu"
#include "../../../csrc/cuda/interpolate_cuda.cu"
#include "../../../csrc/cuda/max_pool_cuda.cu"
#include "../../../csrc/cuda/scale_cuda.cu"

extern "C" {
const char* interpolate(const igfast::InterpolateArgs* args) { return igfast::interpolate_cuda(*args, nullptr); }
const char* accumulate(const igfast::AccumulateArgs* args) { return igfast::accumulate_cuda(*args, nullptr); }
const char* scale(const igfast::ScaleArgs* args) { return igfast::scale_cuda(*args, nullptr); }
const char* gate(const igfast::GateArgs* args) { return igfast::gate_cuda(*args, nullptr); }
const char* gate_grad(const igfast::GateArgs* args) { return igfast::gate_grad_cuda(*args, nullptr); }
const char* batch_norm(const igfast::BatchNormArgs* args) { return igfast::batch_norm_cuda(*args, nullptr); }
const char* batch_norm_grad(const igfast::BatchNormArgs* args) { return igfast::batch_norm_grad_cuda(*args, nullptr); }
const char* max_pool(const igfast::MaxPoolArgs* args) { return igfast::max_pool_cuda(*args, nullptr); }
const char* max_pool_grad(const igfast::MaxPoolArgs* args) { return igfast::max_pool_grad_cuda(*args, nullptr); }
}
