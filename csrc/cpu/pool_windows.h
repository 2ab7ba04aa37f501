// Where the windows of a convolution or a pool lie. Included once per instruction set, hence no include guard.

namespace igfast::IGFAST_ISA {

// The position in the output of the window that starts at `start` in the input along dimension d, or -1. `args` has
// stride, padding and output.
template <typename Args>
inline int64_t window_at(const Args& args, int d, int64_t start) {
  const int64_t padded = start + args.padding[d];
  const bool exists = padded >= 0 && padded % args.stride[d] == 0 && padded / args.stride[d] < args.output[d];
  return exists ? padded / args.stride[d] : -1;
}

}  // namespace igfast::IGFAST_ISA
