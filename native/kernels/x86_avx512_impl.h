// The AVX-512 kernels, included once a build variant: with byte dot products (VNNI) and without.
// The including file defines APERTO_KERNELS, APERTO_KERNELS_NAME and APERTO_VNNI. Everything else
// has internal linkage, so that code built for one CPU can never be linked into another's path.
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

// 12 float sums, a block's 8 weight vectors and the operands fit the 32 registers.
static_assert(kPanelRows == 12);

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }

// Folds lanes in halves: i with i + 8, then + 4, + 2, + 1.
inline float fold_lanes(__m512 v) {
  const __m256 h8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}

inline __m512 vector_exp(__m512 x) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpMin), _CMP_GE_OQ);
  x = _mm512_min_ps(x, _mm512_set1_ps(kExpMax));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low), r);
  __m512 p = _mm512_set1_ps(kExpC7);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC5));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC4));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC3));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC2));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
  p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
  const __m512i power =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_maskz_mul_ps(keep, p, _mm512_castsi512_ps(power));
}

void f32_rmsnorm(const float* x, const float* weight, float eps, size_t n, float* y) {
  __m512 sum = _mm512_setzero_ps();
  for (size_t i = 0; i < n; i += 16) sum = _mm512_fmadd_ps(load(x + i), load(x + i), sum);
  const float mean = fold_lanes(sum) / static_cast<float>(n);
  const __m512 inverse = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < n; i += 16) {
    store(y + i, _mm512_mul_ps(_mm512_mul_ps(load(x + i), inverse), load(weight + i)));
  }
}

void f32_quantize_q8(const float* x, size_t n, int32_t offset, size_t stride, int8_t* values,
                     float* scales, int32_t* starts) {
  for (size_t block = 0; block < n / kBlock; ++block) {
    const __m512 low = load(x + block * kBlock);
    const __m512 high = load(x + block * kBlock + 16);
    const float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const float inverse = amax > kMinAmax ? 127.0f / amax : 0.0f;
    const __m512i q_low = _mm512_cvtps_epi32(_mm512_mul_ps(low, _mm512_set1_ps(inverse)));
    const __m512i q_high = _mm512_cvtps_epi32(_mm512_mul_ps(high, _mm512_set1_ps(inverse)));
    __m128i* out = reinterpret_cast<__m128i*>(values + block * stride * kBlock);
    _mm_storeu_si128(out, _mm512_cvtepi32_epi8(q_low));
    _mm_storeu_si128(out + 1, _mm512_cvtepi32_epi8(q_high));
    scales[block * stride] = amax > kMinAmax ? amax / 127.0f : 0.0f;
    starts[block * stride] = -offset * _mm512_reduce_add_epi32(_mm512_add_epi32(q_low, q_high));
  }
}

// sum + weights . activations in each 32-bit lane; all lanes take the same four activations.
// Weights are bytes plus `kOffset`; its share was put into the sum's start. Exact in either build.
#if APERTO_VNNI
template <int32_t kOffset>
inline __m512i dot4(__m512i sum, __m512i weights, const int8_t* activations) {
  // The compiler would load the broadcast on its own and halve the rate of issue.
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(activations)));
  return sum;
}
template <int32_t kOffset>
inline __m512i start_sum(int32_t start) {
  return _mm512_set1_epi32(start);
}
#else
// Pair sums must fit 16 bits: 2 * 24 * 127 does for MXFP4; Q8 takes |w| and sign(w) * a instead,
// 2 * 128 * 127, and so has no offset to correct.
template <int32_t kOffset>
inline __m512i dot4(__m512i sum, __m512i weights, const int8_t* activations) {
  int32_t four;
  __builtin_memcpy(&four, activations, sizeof four);
  __m512i a = _mm512_set1_epi32(four);
  if constexpr (kOffset == kQ8Offset) {
    const __m512i w = _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(0x80)));
    a = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
    weights = _mm512_abs_epi8(w);
  }
  const __m512i pairs = _mm512_maddubs_epi16(weights, a);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
template <int32_t kOffset>
inline __m512i start_sum(int32_t start) {
  return _mm512_set1_epi32(kOffset == kQ8Offset ? 0 : start);
}
#endif

// The eight vectors of a block's weights, four k each, as unsigned bytes.
struct Mxfp4Block {
  static constexpr int32_t kOffset = kMxfp4Offset;
  static constexpr size_t kBytes = kMxfp4BlockBytes;
  static constexpr size_t kScaleBytes = kTileRows;

  static inline void weights(const uint8_t* block, __m512i* w) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i nibble = _mm512_set1_epi8(0xf);
    for (int j = 0; j < 4; ++j) {
      const __m512i bytes = _mm512_loadu_si512(block + j * 64);
      w[2 * j] = _mm512_shuffle_epi8(table, _mm512_and_si512(bytes, nibble));
      w[2 * j + 1] =
          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble));
    }
  }
  static inline __m512 scales(const uint8_t* scales) {
    const __m512i e =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23));
  }
};

struct Q8Block {
  static constexpr int32_t kOffset = kQ8Offset;
  static constexpr size_t kBytes = 512;
  static constexpr size_t kScaleBytes = kTileRows * 2;

  static inline void weights(const uint8_t* block, __m512i* w) {
    for (int j = 0; j < 8; ++j) w[j] = _mm512_loadu_si512(block + j * 64);
  }
  static inline __m512 scales(const uint8_t* scales) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  }
};

// MXFP4 blocks whose codes were turned into bytes before, because many panels share them.
struct UnpackedMxfp4Block {
  static constexpr int32_t kOffset = kMxfp4Offset;
  static constexpr size_t kBytes = 512;
  static constexpr size_t kScaleBytes = kTileRows;
  static inline void weights(const uint8_t* block, __m512i* w) { Q8Block::weights(block, w); }
  static inline __m512 scales(const uint8_t* scales) { return Mxfp4Block::scales(scales); }
};

inline void unpack_mxfp4(const uint8_t* tile, size_t blocks, uint8_t* bytes) {
  for (size_t b = 0; b < blocks; ++b) {
    __m512i w[8];
    Mxfp4Block::weights(tile + b * kMxfp4BlockBytes, w);
    for (size_t j = 0; j < 8; ++j) _mm512_storeu_si512(bytes + b * 512 + j * 64, w[j]);
  }
}

// One tile times one panel of kRows rows.
template <typename Block, size_t kRows>
void q8_panel(const uint8_t* weights, const uint8_t* scales, size_t blocks, const int8_t* values,
              const float* a_scales, const int32_t* starts, float* out, size_t out_stride) {
  // Loops over sums are unrolled throughout, or the compiler keeps a copy of them in memory.
  __m512 sums[kRows];
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_ps();
  for (size_t b = 0; b < blocks; ++b) {
    __m512i w[8];
    Block::weights(weights, w);
    const __m512 w_scales = Block::scales(scales);
#pragma GCC unroll 12
    for (size_t i = 0; i < kRows; ++i) {
      __m512i dot = start_sum<Block::kOffset>(starts[i]);
#pragma GCC unroll 8
      for (size_t j = 0; j < 8; ++j) {
        dot = dot4<Block::kOffset>(dot, w[j], values + i * kBlock + j * 4);
      }
      const __m512 scale = _mm512_mul_ps(w_scales, _mm512_set1_ps(a_scales[i]));
      sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[i]);
    }
    weights += Block::kBytes;
    scales += Block::kScaleBytes;
    values += kRows * kBlock;
    a_scales += kRows;
    starts += kRows;
  }
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) store(out + i * out_stride, sums[i]);
}

// Calls the instance for a panel of `count` rows, 1 <= count <= kPanelRows.
template <typename Block, size_t kRows = kPanelRows>
inline void q8_panel_of(size_t count, const uint8_t* weights, const uint8_t* scales, size_t blocks,
                        const int8_t* values, const float* a_scales, const int32_t* starts,
                        float* out, size_t out_stride) {
  if (count == kRows) {
    q8_panel<Block, kRows>(weights, scales, blocks, values, a_scales, starts, out, out_stride);
  } else if constexpr (kRows > 1) {
    q8_panel_of<Block, kRows - 1>(count, weights, scales, blocks, values, a_scales, starts, out,
                                  out_stride);
  }
}

template <typename Block>
inline void q8_panels(const uint8_t* weights, const uint8_t* scales, const Q8Panels& a, float* out,
                      size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  for (size_t panel = 0; panel < num_panels(a.num_rows); ++panel) {
    const size_t begin = panel_begin(a.num_rows, panel);
    const size_t count = panel_begin(a.num_rows, panel + 1) - begin;
    q8_panel_of<Block>(count, weights, scales, blocks, a.values + begin * a.k,
                       a.scales + begin * blocks, a.starts + begin * blocks,
                       out + begin * out_stride, out_stride);
  }
}

#if APERTO_AMX
#include "kernels/x86_amx_impl.h"

// Fewer rows are quicker on vectors: turning a tile's codes into bytes costs as much as 9 rows.
constexpr size_t kAmxRows = 18;

void q8_mxfp4w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t* scratch, float* out,
                      size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  const uint8_t* scales = tile + blocks * kMxfp4BlockBytes;
  if (a.num_rows < kAmxRows) {
    q8_panels<Mxfp4Block>(tile, scales, a, out, out_stride);
  } else {
    unpack_signed(tile, blocks, scratch);
    amx_panels<SignedMxfp4Block>(scratch, scales, a, out, out_stride);
  }
}

void q8_q8w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t*, float* out,
                   size_t out_stride) {
  const uint8_t* scales = tile + a.k / kBlock * Q8Block::kBytes;
  if (a.num_rows < kAmxRows) {
    q8_panels<Q8Block>(tile, scales, a, out, out_stride);
  } else {
    amx_panels<OffsetQ8Block>(tile, scales, a, out, out_stride);
  }
}
#else
void q8_mxfp4w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t* scratch, float* out,
                      size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  const uint8_t* scales = tile + blocks * kMxfp4BlockBytes;
  if (a.num_rows <= kPanelRows) {
    q8_panels<Mxfp4Block>(tile, scales, a, out, out_stride);
  } else {
    unpack_mxfp4(tile, blocks, scratch);
    q8_panels<UnpackedMxfp4Block>(scratch, scales, a, out, out_stride);
  }
}

void q8_q8w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t*, float* out,
                   size_t out_stride) {
  q8_panels<Q8Block>(tile, tile + a.k / kBlock * Q8Block::kBytes, a, out, out_stride);
}
#endif

// Weights of one block as float vectors, one k each.
struct Mxfp4FloatBlock {
  static constexpr bool kScaled = true;
  static inline size_t scales_offset(size_t k) { return k / kBlock * kMxfp4BlockBytes; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kMxfp4BlockBytes;
  }
  // The permute reads only the lowest four bits of each lane: the code of its row.
  static inline __m512 weight(const uint8_t* block, size_t k) {
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m512i lanes = _mm512_loadu_si512(block + k / 8 * 64);
    const unsigned shift = static_cast<unsigned>(k % 4 * 8 + k / 4 % 2 * 4);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(lanes, shift), table);
  }
};

struct Bf16Block {
  static constexpr bool kScaled = false;
  static inline size_t scales_offset(size_t) { return 0; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kBlock * 32;
  }
  static inline __m512 weight(const uint8_t* block, size_t k) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + k * 32));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

struct F32Block {
  static constexpr bool kScaled = false;
  static inline size_t scales_offset(size_t) { return 0; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kBlock * 64;
  }
  static inline __m512 weight(const uint8_t* block, size_t k) {
    return _mm512_loadu_ps(block + k * 64);
  }
};

template <typename Block, size_t kRows>
void f32_tile(const uint8_t* tile, const F32Rows& a, const size_t* rows, float* out,
              size_t out_stride) {
  const uint8_t* scales = tile + Block::scales_offset(a.k);
  const float* values[kRows];
  __m512 sums[kRows];
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) {
    values[i] = a.values + rows[i] * a.k;
    sums[i] = _mm512_setzero_ps();
  }
  for (size_t b = 0; b < a.k / kBlock; ++b) {
    const uint8_t* block = Block::block(tile, b);
    __m512 in_block[kRows];
#pragma GCC unroll 12
    for (size_t i = 0; i < kRows; ++i) in_block[i] = _mm512_setzero_ps();
#pragma GCC unroll 32
    for (size_t k = 0; k < kBlock; ++k) {
      const __m512 w = Block::weight(block, k);
#pragma GCC unroll 12
      for (size_t i = 0; i < kRows; ++i) {
        in_block[i] = _mm512_fmadd_ps(w, _mm512_set1_ps(values[i][b * kBlock + k]), in_block[i]);
      }
    }
    if constexpr (Block::kScaled) {
      const __m512 scale = Mxfp4Block::scales(scales + b * kTileRows);
#pragma GCC unroll 12
      for (size_t i = 0; i < kRows; ++i) sums[i] = _mm512_fmadd_ps(in_block[i], scale, sums[i]);
    } else {
#pragma GCC unroll 12
      for (size_t i = 0; i < kRows; ++i) sums[i] = _mm512_add_ps(sums[i], in_block[i]);
    }
  }
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) store(out + i * out_stride, sums[i]);
}

// Calls the instance for `count` rows, 1 <= count <= kPanelRows.
template <typename Block, size_t kRows = kPanelRows>
inline void f32_tile_of(size_t count, const uint8_t* tile, const F32Rows& a, const size_t* rows,
                        float* out, size_t out_stride) {
  if (count == kRows) {
    f32_tile<Block, kRows>(tile, a, rows, out, out_stride);
  } else if constexpr (kRows > 1) {
    f32_tile_of<Block, kRows - 1>(count, tile, a, rows, out, out_stride);
  }
}

template <typename Block>
void f32_matmul(const uint8_t* tile, const F32Rows& a, const int32_t* rows, size_t num_rows,
                float* out, size_t out_stride) {
  for (size_t panel = 0; panel < num_panels(num_rows); ++panel) {
    const size_t begin = panel_begin(num_rows, panel);
    const size_t end = panel_begin(num_rows, panel + 1);
    size_t picked[kPanelRows];
    for (size_t i = begin; i < end; ++i) picked[i - begin] = rows ? rows[i] : i;
    f32_tile_of<Block>(end - begin, tile, a, picked, out + begin * out_stride, out_stride);
  }
}

void f32_swiglu(const float* gate, const float* up, float limit, size_t n, float* out) {
  const __m512 high = _mm512_set1_ps(limit);
  const __m512 low = _mm512_set1_ps(-limit);
  const __m512 one = _mm512_set1_ps(1.0f);
  for (size_t i = 0; i < n; i += 16) {
    const __m512 g = _mm512_min_ps(load(gate + i), high);
    const __m512 u = _mm512_max_ps(_mm512_min_ps(load(up + i), high), low);
    const __m512 e = vector_exp(_mm512_mul_ps(g, _mm512_set1_ps(-1.702f)));
    const __m512 swish = _mm512_div_ps(g, _mm512_add_ps(one, e));
    store(out + i, _mm512_mul_ps(swish, _mm512_add_ps(u, one)));
  }
}

void f32_axpy(float scale, const float* x, size_t n, float* y) {
  const __m512 s = _mm512_set1_ps(scale);
  for (size_t i = 0; i < n; i += 16) store(y + i, _mm512_fmadd_ps(s, load(x + i), load(y + i)));
}

void f32_rope(const float* cos, const float* sin, float scale, size_t half, float* x) {
  const __m256 s8 = _mm256_set1_ps(scale);
  for (size_t d = 0; d < half; d += 8) {
    const __m256 c = _mm256_loadu_ps(cos + d);
    const __m256 s = _mm256_loadu_ps(sin + d);
    const __m256 a = _mm256_loadu_ps(x + d);
    const __m256 b = _mm256_loadu_ps(x + d + half);
    const __m256 first = _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s));
    const __m256 second = _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s));
    _mm256_storeu_ps(x + d, _mm256_mul_ps(first, s8));
    _mm256_storeu_ps(x + d + half, _mm256_mul_ps(second, s8));
  }
}

inline __m512 load_element(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 load_element(const float* p) { return load(p); }

// Queries scored together: 16 sums hide the latency of one fused multiply-add.
constexpr size_t kMaxQueries = 8;

// scores[i][slot] = queries[i] . keys[:, slot]
template <typename Element, size_t kQueries>
void scores_of(const float* queries, const Element* keys, size_t head_dim, float* scores) {
  __m512 low[kQueries];
  __m512 high[kQueries];
  for (size_t i = 0; i < kQueries; ++i) low[i] = high[i] = _mm512_setzero_ps();
  for (size_t d = 0; d < head_dim; ++d) {
    const __m512 k_low = load_element(keys + d * kPageTokens);
    const __m512 k_high = load_element(keys + d * kPageTokens + 16);
#pragma GCC unroll 8
    for (size_t i = 0; i < kQueries; ++i) {
      const __m512 q = _mm512_set1_ps(queries[i * head_dim + d]);
      low[i] = _mm512_fmadd_ps(q, k_low, low[i]);
      high[i] = _mm512_fmadd_ps(q, k_high, high[i]);
    }
  }
  for (size_t i = 0; i < kQueries; ++i) {
    store(scores + i * kPageTokens, low[i]);
    store(scores + i * kPageTokens + 16, high[i]);
  }
}

// Turns the visible scores of one query into weights and moves its state to the new maximum.
inline float weigh(float* scores, size_t begin, size_t end, float* max, float* sum) {
  const uint32_t all = end == kPageTokens ? 0xffffffffu : (1u << end) - 1;
  const uint32_t visible = all & ~((1u << begin) - 1);
  const __mmask16 low_mask = static_cast<__mmask16>(visible);
  const __mmask16 high_mask = static_cast<__mmask16>(visible >> 16);
  const __m512 floor = _mm512_set1_ps(-__builtin_inff());
  const __m512 low = _mm512_mask_loadu_ps(floor, low_mask, scores);
  const __m512 high = _mm512_mask_loadu_ps(floor, high_mask, scores + 16);
  const float page_max = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  const float new_max = page_max > *max ? page_max : *max;
  const float keep = scalar_exp(*max - new_max);
  const __m512 shift = _mm512_set1_ps(new_max);
  const __m512 p_low = vector_exp(_mm512_sub_ps(low, shift));
  const __m512 p_high = vector_exp(_mm512_sub_ps(high, shift));
  store(scores, p_low);
  store(scores + 16, p_high);
  const float page_sum = fold_lanes(_mm512_add_ps(p_low, p_high));
  *max = new_max;
  *sum = __builtin_fmaf(*sum, keep, page_sum);
  return keep;
}

// output[i] = output[i] * keep[i] + sum over slots of weights[i][slot] * values[slot], for kVectors
// x 16 dimensions.
template <typename Element, size_t kQueries, size_t kVectors>
void add_values(const AttendQueries& queries, const float* weights, const float* keep,
                const Element* values, float* output) {
  __m512 sums[kQueries][kVectors];
  for (size_t i = 0; i < kQueries; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      sums[i][v] =
          _mm512_mul_ps(load(output + i * queries.head_dim + v * 16), _mm512_set1_ps(keep[i]));
    }
  }
  for (size_t slot = queries.begin; slot < queries.end; ++slot) {
    __m512 value[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      value[v] = load_element(values + slot * queries.head_dim + v * 16);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < kQueries; ++i) {
      const __m512 weight = _mm512_set1_ps(weights[i * kPageTokens + slot]);
      for (size_t v = 0; v < kVectors; ++v) {
        sums[i][v] = _mm512_fmadd_ps(weight, value[v], sums[i][v]);
      }
    }
  }
  for (size_t i = 0; i < kQueries; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      store(output + i * queries.head_dim + v * 16, sums[i][v]);
    }
  }
}

// One group of kQueries queries against the page.
template <typename Element, size_t kQueries>
void attend_group(const AttendQueries& queries, size_t first, const Element* keys,
                  const Element* values, AttendState state) {
  const size_t head_dim = queries.head_dim;
  float weights[kQueries * kPageTokens];
  scores_of<Element, kQueries>(queries.values + first * head_dim, keys, head_dim, weights);
  float keep[kQueries];
  for (size_t i = 0; i < kQueries; ++i) {
    keep[i] = weigh(weights + i * kPageTokens, queries.begin, queries.end, state.max + first + i,
                    state.sum + first + i);
  }
  constexpr size_t kTogether = kQueries < 4 ? kQueries : 4;
  for (size_t i = 0; i < kQueries; i += kTogether) {
    float* output = state.values + (first + i) * head_dim;
    size_t d = 0;
    for (; d + 64 <= head_dim; d += 64) {
      add_values<Element, kTogether, 4>(queries, weights + i * kPageTokens, keep + i, values + d,
                                        output + d);
    }
    for (; d < head_dim; d += 16) {
      add_values<Element, kTogether, 1>(queries, weights + i * kPageTokens, keep + i, values + d,
                                        output + d);
    }
  }
}

template <typename Element>
void attend(const AttendQueries& queries, const Element* keys, const Element* values,
            AttendState state) {
  size_t first = 0;
  for (; first + kMaxQueries <= queries.count; first += kMaxQueries) {
    attend_group<Element, kMaxQueries>(queries, first, keys, values, state);
  }
  for (; first < queries.count; ++first) {
    attend_group<Element, 1>(queries, first, keys, values, state);
  }
}

float f32_exp_sum(const float* x, float max, float scale, size_t n) {
  const __m512 shift = _mm512_set1_ps(max);
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask =
        n - i >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
    const __m512 e = vector_exp(_mm512_mul_ps(_mm512_sub_ps(value, shift), factor));
    sum = _mm512_mask_add_ps(sum, mask, sum, e);
  }
  return fold_lanes(sum);
}

void mxfp4_decode_bf16(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks,
                       const uint16_t* table, uint16_t* out) {
  for (size_t block = 0; block < num_blocks; ++block) {
    const __m512i values = _mm512_loadu_si512(table + scales[block] * kBlock);
    const __m512i bytes = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + block * kBlock / 2)));
    // The lookup takes five bits of each half: the low nibble and a bit that tells the table's
    // equal halves apart, and the high nibble.
    const __m512i codes = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    _mm512_storeu_si512(out + block * kBlock, _mm512_permutexvar_epi16(codes, values));
  }
}

}  // namespace

const Kernels APERTO_KERNELS = {
    APERTO_KERNELS_NAME,
    f32_rmsnorm,
    f32_quantize_q8,
    q8_mxfp4w_matmul,
    q8_q8w_matmul,
    f32_matmul<Mxfp4FloatBlock>,
    f32_matmul<Bf16Block>,
    f32_matmul<F32Block>,
    f32_swiglu,
    f32_axpy,
    f32_rope,
    attend<uint16_t>,
    attend<float>,
    f32_exp_sum,
    mxfp4_decode_bf16,
};

}  // namespace aperto
