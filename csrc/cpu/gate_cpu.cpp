#include "../kernels.h"

#define IGFAST_KERNEL "gate_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void gate_cpu(const GateArgs& args, int64_t begin, int64_t end) { IGFAST_DISPATCH(gate, args, begin, end); }

void gate_grad_cpu(const GateArgs& args, int64_t begin, int64_t end) { IGFAST_DISPATCH(gate_grad, args, begin, end); }

}  // namespace igfast
