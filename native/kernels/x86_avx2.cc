// The AVX2 kernels: every 16-lane vector of the AVX-512 set is a pair of 8-lane ones.
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

// Activation rows worked on together: 2 x 3 sums and the operands fit the 16 registers.
constexpr size_t kMaxRows = 3;

// 16 floats: rows (or elements) 0-7 and 8-15.
struct Float16 {
  __m256 low, high;
};

inline Float16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Float16 v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline Float16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Float16 mul(Float16 a, Float16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Float16 add(Float16 a, Float16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Float16 fmadd(Float16 a, Float16 b, Float16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

// Folds lanes in halves: i with i + 8, then + 4, + 2, + 1.
inline float fold_lanes(Float16 v) {
  const __m256 h8 = _mm256_add_ps(v.low, v.high);
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}

inline float max_lane(__m256 v) {
  const __m128 h4 = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 h2 = _mm_max_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_max_ss(h2, _mm_movehdup_ps(h2)));
}

inline int32_t sum_lanes(__m256i v) {
  __m128i h = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

inline __m256 vector_exp(__m256 x) {
  const __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(kExpMin), _CMP_GE_OQ);
  x = _mm256_min_ps(x, _mm256_set1_ps(kExpMax));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2E)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpC7);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpC6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpC5));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpC4));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpC3));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpC2));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(keep, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

void f32_rmsnorm(const float* x, const float* weight, float eps, size_t n, float* y) {
  Float16 sum = set1(0.0f);
  for (size_t i = 0; i < n; i += 16) sum = fmadd(load(x + i), load(x + i), sum);
  const float mean = fold_lanes(sum) / static_cast<float>(n);
  const Float16 inverse = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < n; i += 16) {
    store(y + i, mul(mul(load(x + i), inverse), load(weight + i)));
  }
}

void f32_quantize_q8(const float* x, size_t n, int32_t offset, size_t stride, int8_t* values,
                     float* scales, int32_t* starts) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  // Undoes the lane-wise interleaving of the two packs.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (size_t block = 0; block < n / kBlock; ++block) {
    __m256 v[4];
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + block * kBlock + i * 8);
      largest = _mm256_max_ps(largest, _mm256_and_ps(v[i], magnitude));
    }
    const float amax = max_lane(largest);
    const __m256 inverse = _mm256_set1_ps(amax > kMinAmax ? 127.0f / amax : 0.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + block * stride * kBlock),
                        _mm256_permutevar8x32_epi32(bytes, order));
    scales[block * stride] = amax > kMinAmax ? amax / 127.0f : 0.0f;
    starts[block * stride] = -offset * sum_lanes(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]),
                                                                  _mm256_add_epi32(q[2], q[3])));
  }
}

// Four consecutive activations of one row, in every lane.
inline __m256i broadcast4(const int8_t* values) {
  int32_t four;
  __builtin_memcpy(&four, values, sizeof four);
  return _mm256_set1_epi32(four);
}

// sum + weights . activations in each 32-bit lane; pair sums must fit 16 bits.
// MXFP4 weights carry their offset, 2 * 24 * 127 fits, and the sum's start corrects for it.
inline __m256i dot4_mxfp4(__m256i sum, __m256i weights, __m256i activations) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, activations);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Q8 takes |w| and sign(w) * a, 2 * 128 * 127: no offset is left.
inline __m256i dot4_q8(__m256i sum, __m256i weights, __m256i activations) {
  const __m256i w = _mm256_xor_si256(weights, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(activations, w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

inline __m256i load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

struct Mxfp4Block {
  static constexpr size_t kBytes = kMxfp4BlockBytes;
  static constexpr size_t kScaleBytes = kTileRows;

  // Adds the block's dot products of `kRows` activation rows for the 8 tile rows of `half`.
  template <size_t kRows>
  static inline void dot(const uint8_t* block, size_t half, const int8_t* values,
                         const int32_t* starts, __m256i* dots) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(0xf);
    for (size_t i = 0; i < kRows; ++i) dots[i] = _mm256_set1_epi32(starts[i]);
    for (size_t j = 0; j < 4; ++j) {
      const __m256i bytes = load_bytes(block + j * 64 + half * 32);
      const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
      const __m256i second =
          _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
      for (size_t i = 0; i < kRows; ++i) {
        dots[i] = dot4_mxfp4(dots[i], first, broadcast4(values + i * kBlock + j * 8));
        dots[i] = dot4_mxfp4(dots[i], second, broadcast4(values + i * kBlock + j * 8 + 4));
      }
    }
  }
  static inline __m256 scales(const uint8_t* scales, size_t half) {
    const __m256i e =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + half * 8)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23));
  }
};

struct Q8Block {
  static constexpr size_t kBytes = 512;
  static constexpr size_t kScaleBytes = kTileRows * 2;

  template <size_t kRows>
  static inline void dot(const uint8_t* block, size_t half, const int8_t* values, const int32_t*,
                         __m256i* dots) {
    for (size_t i = 0; i < kRows; ++i) dots[i] = _mm256_setzero_si256();
    for (size_t j = 0; j < 8; ++j) {
      const __m256i w = load_bytes(block + j * 64 + half * 32);
      for (size_t i = 0; i < kRows; ++i) {
        dots[i] = dot4_q8(dots[i], w, broadcast4(values + i * kBlock + j * 4));
      }
    }
  }
  static inline __m256 scales(const uint8_t* scales, size_t half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + half * 16)));
  }
};

// One tile times kRows consecutive rows of a panel `width` rows wide.
template <typename Block, size_t kRows>
void q8_rows(const uint8_t* weights, const uint8_t* scales, size_t blocks, size_t width,
             const int8_t* values, const float* a_scales, const int32_t* starts, float* out,
             size_t out_stride) {
  Float16 sums[kRows];
  for (size_t i = 0; i < kRows; ++i) sums[i] = set1(0.0f);
  for (size_t b = 0; b < blocks; ++b) {
    for (size_t half = 0; half < 2; ++half) {
      __m256i dots[kRows];
      Block::template dot<kRows>(weights, half, values, starts, dots);
      const __m256 w_scales = Block::scales(scales, half);
      for (size_t i = 0; i < kRows; ++i) {
        const __m256 scale = _mm256_mul_ps(w_scales, _mm256_set1_ps(a_scales[i]));
        __m256& sum = half == 0 ? sums[i].low : sums[i].high;
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[i]), scale, sum);
      }
    }
    weights += Block::kBytes;
    scales += Block::kScaleBytes;
    values += width * kBlock;
    a_scales += width;
    starts += width;
  }
  for (size_t i = 0; i < kRows; ++i) store(out + i * out_stride, sums[i]);
}

// Works through each panel kMaxRows rows at a time, then the rest one by one.
template <typename Block>
void q8_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t*, float* out, size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  const uint8_t* scales = tile + blocks * Block::kBytes;
  for (size_t panel = 0; panel < num_panels(a.num_rows); ++panel) {
    const size_t begin = panel_begin(a.num_rows, panel);
    const size_t width = panel_begin(a.num_rows, panel + 1) - begin;
    const int8_t* values = a.values + begin * a.k;
    const float* a_scales = a.scales + begin * blocks;
    const int32_t* starts = a.starts + begin * blocks;
    float* rows = out + begin * out_stride;
    size_t i = 0;
    for (; i + kMaxRows <= width; i += kMaxRows) {
      q8_rows<Block, kMaxRows>(tile, scales, blocks, width, values + i * kBlock, a_scales + i,
                               starts + i, rows + i * out_stride, out_stride);
    }
    for (; i < width; ++i) {
      q8_rows<Block, 1>(tile, scales, blocks, width, values + i * kBlock, a_scales + i, starts + i,
                        rows + i * out_stride, out_stride);
    }
  }
}

// Weights of one block as float vectors, one k each.
struct Mxfp4FloatBlock {
  static constexpr bool kScaled = true;
  static inline size_t scales_offset(size_t k) { return k / kBlock * kMxfp4BlockBytes; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kMxfp4BlockBytes;
  }
  // The permute reads the three magnitude bits of each lane; the fourth becomes the sign.
  static inline __m256 half(const uint8_t* lanes, unsigned shift) {
    const __m256 table = _mm256_setr_ps(0, 1, 2, 3, 4, 6, 8, 12);
    const __m256i codes = _mm256_srl_epi32(load_bytes(lanes), _mm_cvtsi32_si128(shift));
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(table, codes), _mm256_castsi256_ps(sign));
  }
  static inline Float16 weight(const uint8_t* block, size_t k) {
    const uint8_t* lanes = block + k / 8 * 64;
    const unsigned shift = static_cast<unsigned>(k % 4 * 8 + k / 4 % 2 * 4);
    return {half(lanes, shift), half(lanes + 32, shift)};
  }
};

struct Bf16Block {
  static constexpr bool kScaled = false;
  static inline size_t scales_offset(size_t) { return 0; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kBlock * 32;
  }
  static inline __m256 half(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
  static inline Float16 weight(const uint8_t* block, size_t k) {
    return {half(block + k * 32), half(block + k * 32 + 16)};
  }
};

struct F32Block {
  static constexpr bool kScaled = false;
  static inline size_t scales_offset(size_t) { return 0; }
  static inline const uint8_t* block(const uint8_t* tile, size_t b) {
    return tile + b * kBlock * 64;
  }
  static inline Float16 weight(const uint8_t* block, size_t k) {
    return load(reinterpret_cast<const float*>(block + k * 64));
  }
};

template <typename Block, size_t kRows>
void f32_tile(const uint8_t* tile, const F32Rows& a, const size_t* rows, float* out,
              size_t out_stride) {
  const uint8_t* scales = tile + Block::scales_offset(a.k);
  Float16 sums[kRows];
  for (size_t i = 0; i < kRows; ++i) sums[i] = set1(0.0f);
  for (size_t b = 0; b < a.k / kBlock; ++b) {
    const uint8_t* block = Block::block(tile, b);
    Float16 in_block[kRows];
    for (size_t i = 0; i < kRows; ++i) in_block[i] = set1(0.0f);
    for (size_t k = 0; k < kBlock; ++k) {
      const Float16 w = Block::weight(block, k);
      for (size_t i = 0; i < kRows; ++i) {
        in_block[i] = fmadd(w, set1(a.values[rows[i] * a.k + b * kBlock + k]), in_block[i]);
      }
    }
    for (size_t i = 0; i < kRows; ++i) {
      if constexpr (Block::kScaled) {
        const uint8_t* block_scales = scales + b * kTileRows;
        const Float16 scale = {Mxfp4Block::scales(block_scales, 0),
                               Mxfp4Block::scales(block_scales, 1)};
        sums[i] = fmadd(in_block[i], scale, sums[i]);
      } else {
        sums[i] = add(sums[i], in_block[i]);
      }
    }
  }
  for (size_t i = 0; i < kRows; ++i) store(out + i * out_stride, sums[i]);
}

// kMaxRows activation rows at a time, then the rest one by one.
template <typename Block>
void f32_matmul(const uint8_t* tile, const F32Rows& a, const int32_t* rows, size_t num_rows,
                float* out, size_t out_stride) {
  size_t i = 0;
  for (; i + kMaxRows <= num_rows; i += kMaxRows) {
    size_t picked[kMaxRows];
    for (size_t j = 0; j < kMaxRows; ++j) picked[j] = rows ? rows[i + j] : i + j;
    f32_tile<Block, kMaxRows>(tile, a, picked, out + i * out_stride, out_stride);
  }
  for (; i < num_rows; ++i) {
    const size_t picked = rows ? rows[i] : i;
    f32_tile<Block, 1>(tile, a, &picked, out + i * out_stride, out_stride);
  }
}

void f32_swiglu(const float* gate, const float* up, float limit, size_t n, float* out) {
  const __m256 high = _mm256_set1_ps(limit);
  const __m256 low = _mm256_set1_ps(-limit);
  const __m256 one = _mm256_set1_ps(1.0f);
  for (size_t i = 0; i < n; i += 8) {
    const __m256 g = _mm256_min_ps(_mm256_loadu_ps(gate + i), high);
    const __m256 u = _mm256_max_ps(_mm256_min_ps(_mm256_loadu_ps(up + i), high), low);
    const __m256 e = vector_exp(_mm256_mul_ps(g, _mm256_set1_ps(-1.702f)));
    const __m256 swish = _mm256_div_ps(g, _mm256_add_ps(one, e));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(swish, _mm256_add_ps(u, one)));
  }
}

void f32_axpy(float scale, const float* x, size_t n, float* y) {
  const Float16 s = set1(scale);
  for (size_t i = 0; i < n; i += 16) store(y + i, fmadd(s, load(x + i), load(y + i)));
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

inline Float16 load_element(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Float16 load_element(const float* p) { return load(p); }

// Turns the visible scores of one query into weights and moves its state to the new maximum.
inline float weigh(float* scores, size_t begin, size_t end, float* max, float* sum) {
  const float floor = -__builtin_inff();
  for (size_t slot = 0; slot < kPageTokens; ++slot) {
    if (slot < begin || slot >= end) scores[slot] = floor;
  }
  __m256 s[4];
  for (int i = 0; i < 4; ++i) s[i] = _mm256_loadu_ps(scores + i * 8);
  const float page_max =
      max_lane(_mm256_max_ps(_mm256_max_ps(s[0], s[1]), _mm256_max_ps(s[2], s[3])));
  const float new_max = page_max > *max ? page_max : *max;
  const float keep = scalar_exp(*max - new_max);
  const __m256 shift = _mm256_set1_ps(new_max);
  for (int i = 0; i < 4; ++i) {
    s[i] = vector_exp(_mm256_sub_ps(s[i], shift));
    _mm256_storeu_ps(scores + i * 8, s[i]);
  }
  const float page_sum = fold_lanes(add({s[0], s[1]}, {s[2], s[3]}));
  *max = new_max;
  *sum = __builtin_fmaf(*sum, keep, page_sum);
  return keep;
}

template <typename Element>
void attend(const AttendQueries& queries, const Element* keys, const Element* values,
            AttendState state) {
  const size_t head_dim = queries.head_dim;
  for (size_t i = 0; i < queries.count; ++i) {
    const float* query = queries.values + i * head_dim;
    Float16 low = set1(0.0f);
    Float16 high = set1(0.0f);
    for (size_t d = 0; d < head_dim; ++d) {
      const Float16 q = set1(query[d]);
      low = fmadd(q, load_element(keys + d * kPageTokens), low);
      high = fmadd(q, load_element(keys + d * kPageTokens + 16), high);
    }
    float weights[kPageTokens];
    store(weights, low);
    store(weights + 16, high);
    const Float16 keep =
        set1(weigh(weights, queries.begin, queries.end, state.max + i, state.sum + i));
    float* output = state.values + i * head_dim;
    for (size_t d = 0; d < head_dim; d += 16) {
      Float16 sums = mul(load(output + d), keep);
      for (size_t slot = queries.begin; slot < queries.end; ++slot) {
        const Element* value = values + slot * head_dim + d;
        sums = fmadd(set1(weights[slot]), load_element(value), sums);
      }
      store(output + d, sums);
    }
  }
}

float f32_exp_sum(const float* x, float max, float scale, size_t n) {
  const __m256 shift = _mm256_set1_ps(max);
  const __m256 factor = _mm256_set1_ps(scale);
  Float16 sum = set1(0.0f);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Float16 v = load(x + i);
    sum.low =
        _mm256_add_ps(sum.low, vector_exp(_mm256_mul_ps(_mm256_sub_ps(v.low, shift), factor)));
    sum.high =
        _mm256_add_ps(sum.high, vector_exp(_mm256_mul_ps(_mm256_sub_ps(v.high, shift), factor)));
  }
  float lanes[kLanes];
  store(lanes, sum);
  for (size_t lane = 0; i < n; ++i, ++lane) lanes[lane] += scalar_exp((x[i] - max) * scale);
  return fold_lanes(load(lanes));
}

void mxfp4_decode_bf16(const uint8_t* blocks, const uint8_t* scales, size_t num_blocks,
                       const uint16_t* table, uint16_t* out) {
  for (size_t block = 0; block < num_blocks; ++block) {
    const uint16_t* values = table + scales[block] * kBlock;
    for (size_t j = 0; j < kBlock / 2; ++j) {
      const uint8_t byte = blocks[block * kBlock / 2 + j];
      out[block * kBlock + 2 * j] = values[byte & 15];
      out[block * kBlock + 2 * j + 1] = values[byte >> 4];
    }
  }
}

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",
    f32_rmsnorm,
    f32_quantize_q8,
    q8_matmul<Mxfp4Block>,
    q8_matmul<Q8Block>,
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
