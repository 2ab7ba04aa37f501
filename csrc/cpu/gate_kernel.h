// Piecewise linear activations and their gradients, which save one bit per element.
//
// A block of kGateBlock elements has kWords words of bits. Bit p of word w belongs to element p * kWords + w. So each
// lane of a vector sets bits of its own word, and neither direction needs shuffles.
#include "vector.h"

namespace igfast::IGFAST_ISA {

template <typename T>
constexpr int64_t kPlanes = static_cast<int64_t>(8 * sizeof(Word<T>));
template <typename T>
constexpr int64_t kWords = kGateBlock / kPlanes<T>;

// Returns where the gate is open: a bool for one lane, all ones or all zeros in each lane of a vector.
template <Activation kActivation, typename V, typename M>
IGFAST_INLINE auto open_gate(V v, M low, M high) {
  if constexpr (kActivation == Activation::kHardtanh) {
    return (v > low) & (v < high);
  } else if constexpr (kActivation == Activation::kLeakyRelu) {
    return v > 0;
  } else {
    return (v <= low) == 0;
  }
}

// Returns the activation of `v`, a lane or a vector of lanes. -0 and NaN pass as in PyTorch.
template <Activation kActivation, typename V, typename M>
IGFAST_INLINE V activated(V v, M low, M high, M slope) {
  if constexpr (kActivation == Activation::kRelu) {
    return v < 0 ? V{} : v;
  } else if constexpr (kActivation == Activation::kHardtanh) {
    return v < low ? V{} + low : (v > high ? V{} + high : v);
  } else if constexpr (kActivation == Activation::kLeakyRelu) {
    return v > 0 ? v : v * slope;
  } else {
    return v <= low ? V{} + high : v;
  }
}

template <typename T, Activation kActivation>
void gate_blocks(const GateArgs& args, int64_t begin, int64_t end) {
  const auto low = static_cast<Math<T>>(args.low), high = static_cast<Math<T>>(args.high);
  const auto slope = static_cast<Math<T>>(args.slope);
  for (int64_t block = begin; block < end; ++block) {
    const T* x = static_cast<const T*>(args.from) + block * kGateBlock;
    T* y = static_cast<T*>(args.to) + block * kGateBlock;
    auto* words = reinterpret_cast<Word<T>*>(args.bits + block * kGateBytes);
    const int64_t n = args.n_elements - block * kGateBlock;
    if (n >= kGateBlock) {
      for (int64_t w = 0; w < kWords<T>; w += kLanes<T>) {
        WordVector<T> open{};
        WordVector<T> bit = WordVector<T>{} + 1;
        for (int64_t i = w; i < kGateBlock; i += kWords<T>, bit <<= 1) {
          const auto v = load_contiguous(x + i);
          open |= bit_cast<WordVector<T>>(open_gate<kActivation>(v, low, high)) & bit;
          store_contiguous(y + i, activated<kActivation>(v, low, high, slope));
        }
        std::memcpy(words + w, &open, sizeof(open));
      }
      continue;
    }
    std::memset(words, 0, kGateBytes);
    for (int64_t i = 0; i < n; ++i) {
      const auto v = load(x[i]);
      if (open_gate<kActivation>(v, low, high)) words[i % kWords<T>] |= Word<T>{1} << (i / kWords<T>);
      store(&y[i], activated<kActivation>(v, low, high, slope));
    }
  }
}

template <typename T>
void gate_any(const GateArgs& args, int64_t begin, int64_t end) {
  switch (args.activation) {
    case Activation::kRelu: return gate_blocks<T, Activation::kRelu>(args, begin, end);
    case Activation::kHardtanh: return gate_blocks<T, Activation::kHardtanh>(args, begin, end);
    case Activation::kLeakyRelu: return gate_blocks<T, Activation::kLeakyRelu>(args, begin, end);
    case Activation::kThreshold: return gate_blocks<T, Activation::kThreshold>(args, begin, end);
  }
}

template <typename T>
void gate_grad_blocks(const GateArgs& args, int64_t begin, int64_t end) {
  const auto slope = static_cast<Math<T>>(args.slope);
  for (int64_t block = begin; block < end; ++block) {
    const T* grad = static_cast<const T*>(args.from) + block * kGateBlock;
    T* to = static_cast<T*>(args.to) + block * kGateBlock;
    const auto* words = reinterpret_cast<const Word<T>*>(args.bits + block * kGateBytes);
    const int64_t n = args.n_elements - block * kGateBlock;
    if (n >= kGateBlock) {
      for (int64_t w = 0; w < kWords<T>; w += kLanes<T>) {
        WordVector<T> open;
        std::memcpy(&open, words + w, sizeof(open));
        for (int64_t i = w; i < kGateBlock; i += kWords<T>, open >>= 1) {
          const auto g = load_contiguous(grad + i);
          const auto closed = slope == 0 ? Vector<T>{} : g * slope;
          store_contiguous(to + i, (open & 1) != 0 ? g : closed);
        }
      }
      continue;
    }
    for (int64_t i = 0; i < n; ++i) {
      const auto g = load(grad[i]);
      const bool open = ((words[i % kWords<T>] >> (i / kWords<T>)) & 1) != 0;
      store(&to[i], open ? g : (slope == 0 ? Math<T>{0} : g * slope));
    }
  }
}

inline void gate(const GateArgs& args, int64_t begin, int64_t end) { IGFAST_FOR_DTYPE(gate_any, args, begin, end) }

inline void gate_grad(const GateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(gate_grad_blocks, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
