// Adds up the gradients of a convolution's windows where they lie in its input.
#include "pool_windows.h"
#include "vector.h"

namespace igfast::IGFAST_ISA {

template <typename T>
IGFAST_INLINE void add(T* __restrict to, const T* __restrict from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store_vector(to + i, 1, load_vector(to + i, 1) + load_vector(from + i, 1));
  for (; i < n; ++i) to[i] += from[i];
}

// One line of each of the windows in a line of the output, `step` elements apart, to the line of the input it lies in.
template <typename T>
IGFAST_INLINE void add_line(T* to, const T* from, int64_t step, const WindowArgs& args) {
  const int64_t width = args.kernel[2];
  for (int64_t column = 0; column < args.output[2]; ++column, from += step) {
    const int64_t start = column * args.stride[2] - args.padding[2];
    const int64_t begin = start < 0 ? -start : 0;
    const int64_t end = start + width > args.input[2] ? args.input[2] - start : width;
    if (begin < end) {
      add(to + (start + begin) * args.channels, from + begin * args.channels, (end - begin) * args.channels);
    }
  }
}

template <typename T>
void windows_items(const WindowArgs& args, int64_t begin, int64_t end) {
  const int64_t line_size = args.input[2] * args.channels;
  const int64_t lines_each = args.input_end - args.input_begin;
  const int64_t kernel_line = args.kernel[2] * args.channels;
  const int64_t window = args.kernel[0] * args.kernel[1] * kernel_line;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t example = args.first_example + item / lines_each, line = args.input_begin + item % lines_each;
    T* to = static_cast<T*>(args.to) + (example * args.input[0] * args.input[1] + line) * line_size;
    for (int64_t kd = 0; kd < args.kernel[0]; ++kd) {
      const int64_t depth = window_at(args, 0, line / args.input[1] - kd);
      const int64_t first = (example * args.output[0] + depth) * args.output[1];
      if (depth < 0 || first >= args.output_end || first + args.output[1] <= args.output_begin) continue;
      for (int64_t kh = 0; kh < args.kernel[1]; ++kh) {
        const int64_t height = window_at(args, 1, line % args.input[1] - kh);
        if (height < 0 || first + height < args.output_begin || first + height >= args.output_end) continue;
        const int64_t skipped = (first + height - args.output_begin) * args.output[2];
        const T* from = static_cast<const T*>(args.windows) + skipped * window;
        add_line(to, from + (kd * args.kernel[1] + kh) * kernel_line, window, args);
      }
    }
  }
}

inline void add_windows(const WindowArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_WIDE_DTYPE(windows_items, args, begin, end);
}

}  // namespace igfast::IGFAST_ISA
