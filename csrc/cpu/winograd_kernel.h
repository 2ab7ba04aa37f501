// Transforms of images to the 4x4 tiles of Winograd's F(2x2, 3x3), and of products of tiles to images.
#include "vector.h"

namespace igfast::IGFAST_ISA {

constexpr int kTileSide = 4, kTileCells = 16, kTileOutput = 2;

// The first cell of a tile's patch. That cell may lie outside of the image.
struct Patch {
  int64_t example, top, left;

  IGFAST_INLINE Patch(const WinogradArgs& args, int64_t tile)
      : example(tile / args.tiles_wide / args.tiles_high),
        top(tile / args.tiles_wide % args.tiles_high * kTileOutput - args.before[0]),
        left(tile % args.tiles_wide * kTileOutput - args.before[1]) {}
};

// Writes the addresses of a square of cells, null outside of the image. Returns whether all cells are inside.
template <typename T, int kSide>
IGFAST_INLINE bool find_cells(const WinogradArgs& args, const Patch& patch, T** cells) {
  bool all_inside = true;
  for (int64_t cell = 0; cell < kSide * kSide; ++cell) {
    const int64_t y = patch.top + cell / kSide, x = patch.left + cell % kSide;
    const bool is_inside = y >= 0 && y < args.height && x >= 0 && x < args.width;
    const int64_t position = (patch.example * args.height + y) * args.width + x;
    cells[cell] = is_inside ? static_cast<T*>(args.image) + position * args.n_channels : nullptr;
    all_inside = all_inside && is_inside;
  }
  return all_inside;
}

// Multiplies by B^T in place. The rows of B^T are (1 0 -1 0), (0 1 1 0), (0 -1 1 0), (0 1 0 -1).
template <int kStep, typename V>
IGFAST_INLINE void to_tile_line(V* d) {
  const V a = d[0], b = d[kStep], c = d[2 * kStep], e = d[3 * kStep];
  d[0] = a - c;
  d[kStep] = b + c;
  d[2 * kStep] = c - b;
  d[3 * kStep] = b - e;
}

// Multiplies by A^T in place. The rows of A^T are (1 1 1 0), (0 1 -1 -1).
template <int kStep, typename V>
IGFAST_INLINE void from_tile_line(V* m) {
  const V a = m[0], b = m[kStep], c = m[2 * kStep], e = m[3 * kStep];
  m[0] = a + b + c;
  m[kStep] = b - c - e;
}

template <typename V>
IGFAST_INLINE void to_tile(V* d) {
  for (int i = 0; i < kTileSide; ++i) to_tile_line<kTileSide>(d + i);
  for (int i = 0; i < kTileSide; ++i) to_tile_line<1>(d + kTileSide * i);
}

// The 2x2 result is in elements 0, 1, 4 and 5.
template <typename V>
IGFAST_INLINE void from_tile(V* m) {
  for (int i = 0; i < kTileSide; ++i) from_tile_line<kTileSide>(m + i);
  for (int i = 0; i < kTileOutput; ++i) from_tile_line<1>(m + kTileSide * i);
}

template <typename V, typename T>
IGFAST_INLINE V load_cell(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename V, typename T>
IGFAST_INLINE void store_cell(T* to, V value) {
  std::memcpy(to, &value, sizeof(value));
}

// V is one channel or a vector of channels. `step` elements lie between the cells of a tile.
template <bool kInside, typename V, typename T>
IGFAST_INLINE void write_tile(T* const* cells, T* tile, int64_t step, int64_t channel) {
  V d[kTileCells];
  for (int i = 0; i < kTileCells; ++i) {
    d[i] = kInside || cells[i] != nullptr ? load_cell<V>(cells[i] + channel) : V{};
  }
  to_tile(d);
  for (int i = 0; i < kTileCells; ++i) store_cell(tile + i * step + channel, d[i]);
}

template <typename V, typename T>
IGFAST_INLINE void read_tile(T* const* cells, const T* tile, int64_t step, int64_t channel) {
  V m[kTileCells];
  for (int i = 0; i < kTileCells; ++i) m[i] = load_cell<V>(tile + i * step + channel);
  from_tile(m);
  for (int i = 0; i < kTileOutput * kTileOutput; ++i) {
    const V value = m[i / kTileOutput * kTileSide + i % kTileOutput];
    if (cells[i] != nullptr) store_cell(cells[i] + channel, value);
  }
}

template <typename T>
void tiles_from_image(const WinogradArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.n_channels, step = args.n_tiles * n;
  for (int64_t item = begin; item < end; ++item) {
    T* cells[kTileCells];
    const bool inside = find_cells<T, kTileSide>(args, Patch(args, args.first_tile + item), cells);
    T* tile = static_cast<T*>(args.tiles) + item * n;
    int64_t channel = 0;
    if (inside) {
      for (; channel + kLanes<T> <= n; channel += kLanes<T>) write_tile<true, Vector<T>>(cells, tile, step, channel);
    } else {
      for (; channel + kLanes<T> <= n; channel += kLanes<T>) write_tile<false, Vector<T>>(cells, tile, step, channel);
    }
    for (; channel < n; ++channel) write_tile<false, T>(cells, tile, step, channel);
  }
}

template <typename T>
void image_from_tiles(const WinogradArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.n_channels, step = args.n_tiles * n;
  for (int64_t item = begin; item < end; ++item) {
    T* cells[kTileOutput * kTileOutput];
    find_cells<T, kTileOutput>(args, Patch(args, args.first_tile + item), cells);
    const T* tile = static_cast<const T*>(args.tiles) + item * n;
    int64_t channel = 0;
    for (; channel + kLanes<T> <= n; channel += kLanes<T>) read_tile<Vector<T>>(cells, tile, step, channel);
    for (; channel < n; ++channel) read_tile<T>(cells, tile, step, channel);
  }
}

inline void winograd_tiles(const WinogradArgs& args, int64_t begin, int64_t end) {
  args.dtype == DType::kDouble ? tiles_from_image<double>(args, begin, end) : tiles_from_image<float>(args, begin, end);
}

inline void winograd_image(const WinogradArgs& args, int64_t begin, int64_t end) {
  args.dtype == DType::kDouble ? image_from_tiles<double>(args, begin, end) : image_from_tiles<float>(args, begin, end);
}

}  // namespace igfast::IGFAST_ISA
