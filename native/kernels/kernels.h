// The kernel table: one set of functions per instruction set, every set equal bit for bit.
//
// Equality is by construction. A vector lane owns an output row (matmul), a key position (scores)
// or a head dimension (values), so each number is one chain of operations whose order is written
// down here and does not depend on the vector width:
//   - integer dot products inside a block of 32 are exact;
//   - float accumulation runs over blocks in ascending order with explicit fused multiply-add;
//   - sums across lanes use kLanes partial sums, index modulo kLanes, folded in halves.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aperto {

inline constexpr size_t kTileRows = 16;    // weight rows interleaved in a tile: one AVX-512 vector
inline constexpr size_t kBlock = 32;       // values that share one scale (MXFP4 and Q8_0)
inline constexpr size_t kPageTokens = 32;  // tokens in a KV page: two AVX-512 vectors of scores
inline constexpr size_t kLanes = 16;       // partial sums of every reduction across elements

// Offsets that make weights unsigned, as the byte dot product wants them.
inline constexpr int32_t kMxfp4Offset = 12;  // twice the largest MXFP4 value
inline constexpr int32_t kQ8Offset = 128;

inline constexpr size_t kPanelRows = 12;  // activation rows multiplied together: see below

// Activations quantised in blocks, value = scale * int8, in panels of rows that a kernel keeps in
// registers together: [panel][k / 32][rows of the panel][32], so that one pointer walks a panel.
// The rows are split evenly into as few panels of at most kPanelRows as possible.
struct Q8Panels {
  int8_t* values;   // [rows, k] in panel order
  float* scales;    // [rows, k / 32] in panel order
  int32_t* starts;  // like scales: -offset * (sum of the block's values)
  size_t k;
  size_t num_rows;
};

static inline size_t num_panels(size_t num_rows) {
  return (num_rows + kPanelRows - 1) / kPanelRows;
}
static inline size_t panel_begin(size_t num_rows, size_t panel) {
  return num_rows * panel / num_panels(num_rows);
}
// The panel that holds a row.
static inline size_t panel_of(size_t num_rows, size_t row) {
  return ((row + 1) * num_panels(num_rows) - 1) / num_rows;
}

// A dense float activation matrix.
struct F32Rows {
  const float* values;  // [rows, k]
  size_t k;
};

// Attention state of one query head: running maximum, sum of exponentials, weighted values.
struct AttendState {
  float* max;     // [queries]
  float* sum;     // [queries]
  float* values;  // [queries, head_dim]
};

// One token's queries against one page: all heads that share the page's key/value head.
struct AttendQueries {
  const float* values;  // [queries, head_dim], already scaled
  size_t count;         // queries
  size_t head_dim;      // a multiple of 16
  size_t begin;         // first visible slot of the page
  size_t end;           // one past the last visible slot; begin < end <= 32
};

struct Kernels {
  const char* name;

  // y = x / sqrt(mean(x^2) + eps) * weight. x, weight, y: [n], n a multiple of 16.
  void (*f32_rmsnorm)(const float* x, const float* weight, float eps, size_t n, float* y);

  // Per block b of 32: scale = amax / 127, value = round_to_even(x * (127 / amax)),
  // start = -offset * sum(values). Block b goes to values + b * stride * 32 and to
  // scales[b * stride], starts[b * stride]. n is a multiple of 32.
  void (*f32_quantize_q8)(const float* x, size_t n, int32_t offset, size_t stride, int8_t* values,
                          float* scales, int32_t* starts);

  // out[i * out_stride + r] = sum_k a[i, k] * w[r, k] for the 16 rows r of one tile (layouts in
  // mxfp4.h and below) and every row i of the panels. scratch: 16 k bytes, 64-aligned.
  void (*q8_mxfp4w_matmul)(const uint8_t* tile, const Q8Panels& a, uint8_t* scratch, float* out,
                           size_t out_stride);
  void (*q8_q8w_matmul)(const uint8_t* tile, const Q8Panels& a, uint8_t* scratch, float* out,
                        size_t out_stride);

  // The same with float activations, a[rows[i]] for i < num_rows; rows == nullptr: rows[i] = i.
  void (*f32_mxfp4w_matmul)(const uint8_t* tile, const F32Rows& a, const int32_t* rows,
                            size_t num_rows, float* out, size_t out_stride);
  void (*f32_bf16w_matmul)(const uint8_t* tile, const F32Rows& a, const int32_t* rows,
                           size_t num_rows, float* out, size_t out_stride);
  void (*f32_f32w_matmul)(const uint8_t* tile, const F32Rows& a, const int32_t* rows,
                          size_t num_rows, float* out, size_t out_stride);

  // out = g / (1 + exp(-1.702 g)) * (u + 1), g = min(gate, limit), u = clamp(up, -limit, limit).
  // n is a multiple of 16.
  void (*f32_swiglu)(const float* gate, const float* up, float limit, size_t n, float* out);

  // y += scale * x, fused. n is a multiple of 16.
  void (*f32_axpy)(float scale, const float* x, size_t n, float* y);

  // Half-split rotation of one head: x[d] and x[d + half] by the angle of d, times scale.
  // cos, sin: [half], half a multiple of 8.
  void (*f32_rope)(const float* cos, const float* sin, float scale, size_t half, float* x);

  // One page of keys [head_dim, 32] and values [32, head_dim] folded into the states of queries.
  void (*f32_f16kv_attend)(const AttendQueries& queries, const uint16_t* keys,
                           const uint16_t* values, AttendState state);
  void (*f32_f32kv_attend)(const AttendQueries& queries, const float* keys, const float* values,
                           AttendState state);

  // sum_i exp((x[i] - max) * scale) in kLanes partial sums. Any n.
  float (*f32_exp_sum)(const float* x, float max, float scale, size_t n);

  // MXFP4 blocks in a checkpoint's order (mxfp4_decode.h) to bfloat16 bits:
  // out[32 b + i] = table[scales[b]][code i of block b]. table: [256][32], the 16 codes twice.
  void (*mxfp4_decode_bf16)(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks,
                            const uint16_t* table, uint16_t* out);
};

// Bytes of one packed tile of 16 rows, rounded up to a cache line.
//   MXFP4 in mxfp4.h.
//   Q8:   [k/32][8][16 rows][4] bytes (value + 128), then scales f16 [k/32][16].
//   BF16: [k][16]. F32: [k][16].
constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
constexpr size_t mxfp4_tile_bytes(size_t k) { return round_up(k / kBlock * 272, 64); }
constexpr size_t q8_tile_bytes(size_t k) { return round_up(k / kBlock * 544, 64); }
constexpr size_t bf16_tile_bytes(size_t k) { return round_up(k * 32, 64); }
constexpr size_t f32_tile_bytes(size_t k) { return round_up(k * 64, 64); }

extern const Kernels kReferenceKernels;
#ifdef APERTO_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAmxKernels;
#endif

}  // namespace aperto
