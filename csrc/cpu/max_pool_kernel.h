// Max pooling and its gradient, which needs one byte per output: the number of the largest cell in the window, counted
// along the width first.
#include "vector.h"

namespace igfast::IGFAST_ISA {

// Returns the output position of the window that starts at `start` in the input along dimension d, or -1.
inline int64_t window_at(const MaxPoolArgs& args, int d, int64_t start) {
  const int64_t padded = start + args.padding[d];
  const bool exists = padded >= 0 && padded % args.stride[d] == 0 && padded / args.stride[d] < args.output[d];
  return exists ? padded / args.stride[d] : -1;
}

// The cells [begin, end) of a window that lie in the input, along one dimension. `start` is the input position of cell
// 0, which may lie in the padding.
struct CellRange {
  int64_t start, begin, end;

  IGFAST_INLINE CellRange(const MaxPoolArgs& shape, int d, int64_t output) {
    const int64_t step = shape.dilation[d];
    start = output * shape.stride[d] - shape.padding[d];
    begin = start < 0 ? divided_up(-start, step) : 0;
    const int64_t left = shape.input[d] - start;
    end = left < shape.kernel[d] * step ? divided_up(left, step) : shape.kernel[d];
  }

  // A division takes as long as the rest of a window, and almost all steps are 1.
  static IGFAST_INLINE int64_t divided_up(int64_t n, int64_t step) { return step == 1 ? n : (n + step - 1) / step; }
};

// Loads lanes that are `stride` elements apart.
template <typename T>
IGFAST_INLINE Vector<T> load_strided(const T* from, int64_t stride) {
  if (stride == 1) return load_contiguous(from);
  Math<T> lanes[kLanes<T>];
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = load(from[lane * stride]);
  return load_contiguous(lanes);
}

// As in PyTorch, the earlier of two equal cells wins, and a NaN wins over every earlier cell.
template <typename V, typename W>
IGFAST_INLINE void challenge(V& largest, W& winner, V value, W cell) {
  const auto wins = (value > largest) | (value != value);
  largest = wins ? value : largest;
  winner = wins ? cell : winner;
}

// The input lines that the windows of one output line cover: each line's address, and the number of its first cell.
template <typename T>
struct Lines {
  const T* at[kMostCells];
  int64_t cell[kMostCells];
  int64_t n = 0;

  // `item` numbers (plane, output depth, output height); `line_size` is in elements.
  IGFAST_INLINE Lines(const MaxPoolArgs& args, int64_t item, int64_t line_size) {
    const int64_t plane = item / args.output[1] / args.output[0];
    const T* from = static_cast<const T*>(args.from) + plane * args.input[0] * args.input[1] * line_size;
    const CellRange depths(args, 0, item / args.output[1] % args.output[0]), heights(args, 1, item % args.output[1]);
    for (int64_t d = depths.begin; d < depths.end; ++d) {
      for (int64_t h = heights.begin; h < heights.end; ++h) {
        const int64_t depth = depths.start + d * args.dilation[0], height = heights.start + h * args.dilation[1];
        at[n] = from + (depth * args.input[1] + height) * line_size;
        cell[n++] = (d * args.kernel[1] + h) * args.kernel[2];
      }
    }
  }
};

// Computes a channels-last line of outputs. Work items are (batch, output depth, output height).
template <typename T>
IGFAST_INLINE void max_pool_channels(const MaxPoolArgs& args, int64_t item) {
  const Lines<T> lines(args, item, args.input[2] * args.n_channels);
  const T* at[kMostCells];
  Word<T> cell[kMostCells];
  for (int64_t column = 0; column < args.output[2]; ++column) {
    const CellRange widths(args, 2, column);
    int64_t n = 0;
    for (int64_t line = 0; line < lines.n; ++line) {
      for (int64_t w = widths.begin; w < widths.end; ++w) {
        at[n] = lines.at[line] + (widths.start + w * args.dilation[2]) * args.n_channels;
        cell[n++] = static_cast<Word<T>>(lines.cell[line] + w);
      }
    }
    const int64_t first = (item * args.output[2] + column) * args.n_channels;
    T* to = static_cast<T*>(args.to) + first;
    int64_t c = 0;
    for (; c + kLanes<T> <= args.n_channels; c += kLanes<T>) {
      auto largest = load_contiguous(at[0] + c);
      WordVector<T> winner = WordVector<T>{} + cell[0];
      for (int64_t i = 1; i < n; ++i) challenge(largest, winner, load_contiguous(at[i] + c), WordVector<T>{} + cell[i]);
      store_contiguous(to + c, largest);
      store_bytes<T>(args.cell + first + c, winner);
    }
    for (; c < args.n_channels; ++c) {
      Math<T> largest = load(at[0][c]);
      Word<T> winner = cell[0];
      for (int64_t i = 1; i < n; ++i) challenge(largest, winner, load(at[i][c]), cell[i]);
      store(&to[c], largest);
      args.cell[first + c] = static_cast<uint8_t>(winner);
    }
  }
}

// Computes a line of outputs of one channel. Work items are (batch, channel, output depth, output height). A literal
// stride lets the compiler unroll the loads of neighbouring windows.
template <typename T>
IGFAST_INLINE void max_pool_line(const MaxPoolArgs& args, int64_t item, int64_t stride) {
  const Lines<T> lines(args, item, args.input[2]);
  const int64_t first = item * args.output[2], width = args.kernel[2], step = args.dilation[2];
  T* to = static_cast<T*>(args.to) + first;
  for (int64_t column = 0; column < args.output[2];) {
    const CellRange widths(args, 2, column);
    const bool are_whole = column + kLanes<T> <= args.output[2] && widths.start >= 0 &&
                           widths.start + (kLanes<T> - 1) * stride + (width - 1) * step < args.input[2];
    if (are_whole) {
      auto largest = load_strided(lines.at[0] + widths.start, stride);
      WordVector<T> winner = WordVector<T>{} + static_cast<Word<T>>(lines.cell[0]);
      for (int64_t line = 0; line < lines.n; ++line) {
        for (int64_t w = line == 0 ? 1 : 0; w < width; ++w) {
          challenge(largest, winner, load_strided(lines.at[line] + widths.start + w * step, stride),
                    WordVector<T>{} + static_cast<Word<T>>(lines.cell[line] + w));
        }
      }
      store_contiguous(to + column, largest);
      store_bytes<T>(args.cell + first + column, winner);
      column += kLanes<T>;
      continue;
    }
    Math<T> largest = load(lines.at[0][widths.start + widths.begin * step]);
    int64_t winner = lines.cell[0] + widths.begin;
    for (int64_t line = 0; line < lines.n; ++line) {
      for (int64_t w = widths.begin; w < widths.end; ++w) {
        challenge(largest, winner, load(lines.at[line][widths.start + w * step]), lines.cell[line] + w);
      }
    }
    store(&to[column], largest);
    args.cell[first + column++] = static_cast<uint8_t>(winner);
  }
}

template <typename T>
void max_pool_items(const MaxPoolArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (args.channels_last) {
      max_pool_channels<T>(args, item);
    } else if (args.stride[2] == 2) {
      max_pool_line<T>(args, item, 2);
    } else {
      max_pool_line<T>(args, item, args.stride[2]);
    }
  }
}

// Adds the gradients of an output line to one input line, whose cells are [cell, cell + width) of the windows.
template <typename T>
IGFAST_INLINE void add_channels(T* to, const T* grad, const uint8_t* winners, int64_t cell, const MaxPoolArgs& args) {
  const int64_t n = args.n_channels, step = args.dilation[2] * n;
  for (int64_t column = 0; column < args.output[2]; ++column, grad += n, winners += n) {
    const CellRange widths(args, 2, column);
    int64_t c = 0;
    for (; c + kLanes<T> <= n; c += kLanes<T>) {
      const auto g = load_contiguous(grad + c);
      const auto winner = load_bytes<T>(winners + c);
      for (int64_t w = widths.begin; w < widths.end; ++w) {
        T* at = to + (widths.start * n + w * step) + c;
        const auto wins = winner == static_cast<Word<T>>(cell + w);
        store_contiguous(at, load_contiguous(at) + (wins ? g : Vector<T>{}));
      }
    }
    for (; c < n; ++c) {
      const int64_t w = winners[c] - cell;
      if (w >= widths.begin && w < widths.end) {
        T* at = to + (widths.start * n + w * step) + c;
        store(at, load(*at) + load(grad[c]));
      }
    }
  }
}

// Computes the gradient of one input line. The last cells of the windows come first, so that outputs are summed in
// order.
template <typename T>
void max_pool_grad_channels(const MaxPoolArgs& args, int64_t item) {
  const int64_t line_size = args.input[2] * args.n_channels;
  T* to = static_cast<T*>(args.to) + item * line_size;
  std::memset(static_cast<void*>(to), 0, line_size * sizeof(T));
  const int64_t height = item % args.input[1], depth = item / args.input[1] % args.input[0];
  const int64_t example = item / args.input[1] / args.input[0];
  for (int64_t d = args.kernel[0]; d-- > 0;) {
    const int64_t from_depth = window_at(args, 0, depth - d * args.dilation[0]);
    if (from_depth < 0) continue;
    for (int64_t h = args.kernel[1]; h-- > 0;) {
      const int64_t from_height = window_at(args, 1, height - h * args.dilation[1]);
      if (from_height < 0) continue;
      const int64_t line = (example * args.output[0] + from_depth) * args.output[1] + from_height;
      const int64_t from = line * args.output[2] * args.n_channels;
      add_channels(to, static_cast<const T*>(args.from) + from, args.cell + from,
                   (d * args.kernel[1] + h) * args.kernel[2], args);
    }
  }
}

// Computes the gradient of one channel of an example.
template <typename T>
void max_pool_grad_plane(const MaxPoolArgs& args, int64_t item) {
  const int64_t input_size = args.input[0] * args.input[1] * args.input[2];
  T* to = static_cast<T*>(args.to) + item * input_size;
  std::memset(static_cast<void*>(to), 0, input_size * sizeof(T));
  int64_t steps[kMostCells], n = 0;  // elements from cell 0 to each cell
  for (int64_t d = 0; d < args.kernel[0]; ++d) {
    for (int64_t h = 0; h < args.kernel[1]; ++h) {
      for (int64_t w = 0; w < args.kernel[2]; ++w) {
        const int64_t line = d * args.dilation[0] * args.input[1] + h * args.dilation[1];
        steps[n++] = line * args.input[2] + w * args.dilation[2];
      }
    }
  }
  const int64_t n_lines = args.output[0] * args.output[1];
  const T* grad = static_cast<const T*>(args.from) + item * n_lines * args.output[2];
  const uint8_t* winner = args.cell + item * n_lines * args.output[2];
  for (int64_t line = 0; line < n_lines; ++line) {
    const int64_t depth = line / args.output[1] * args.stride[0] - args.padding[0];
    const int64_t height = line % args.output[1] * args.stride[1] - args.padding[1];
    int64_t start = (depth * args.input[1] + height) * args.input[2] - args.padding[2];
    for (int64_t column = 0; column < args.output[2]; ++column, ++grad, ++winner, start += args.stride[2]) {
      T* at = to + (start + steps[*winner]);
      store(at, load(*at) + load(*grad));
    }
  }
}

template <typename T>
void max_pool_grad_items(const MaxPoolArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (args.channels_last) {
      max_pool_grad_channels<T>(args, item);
    } else {
      max_pool_grad_plane<T>(args, item);
    }
  }
}

inline void max_pool(const MaxPoolArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(max_pool_items, args, begin, end)
}

inline void max_pool_grad(const MaxPoolArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(max_pool_grad_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
