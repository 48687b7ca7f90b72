// Integer products of panels on the matrix unit (AMX), included by x86_avx512_impl.h. The unit
// multiplies one block of a panel with one block of a tile, exactly; scales are applied outside of
// it in the order of all kernels, so the bits are those of every other set.

// Blocks under way at once, each with a register for its products. The unit works in order and a
// product takes it some fifty cycles: a product is stored only when three more were begun.
constexpr size_t kAhead = 4;

// Registers: 0-3 products [rows][16] int32; 4 and 6 activations [rows][32]; 5 and 7 weights
// [8][16][4].
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 32, 64, 32, 64};
  uint8_t rows[16] = {};

  explicit TileConfig(size_t panel_rows) {
    for (size_t i = 0; i < 7; ++i) rows[i] = static_cast<uint8_t>(panel_rows);
    rows[5] = rows[7] = 8;
  }
};

#define APERTO_MULTIPLY(product, activation, weight, op)                             \
  __asm__ volatile("tilezero %%tmm" #product                                         \
                   "\n\t"                                                            \
                   "tileloadd (%0, %1, 1), %%tmm" #activation                        \
                   "\n\t"                                                            \
                   "tileloadd (%2, %3, 1), %%tmm" #weight "\n\t" op " %%tmm" #weight \
                   ", %%tmm" #activation ", %%tmm" #product                          \
                   :                                                                 \
                   : "r"(activations), "r"(panel_stride), "r"(weights), "r"(stride)  \
                   : "memory")

// Begins the product of one block in register kProduct.
template <bool kSigned, size_t kProduct>
inline void begin_product(const int8_t* activations, const uint8_t* weights) {
  const long panel_stride = kBlock;
  const long stride = 64;
  if constexpr (kSigned) {
    if constexpr (kProduct == 0) APERTO_MULTIPLY(0, 4, 5, "tdpbssd");
    if constexpr (kProduct == 1) APERTO_MULTIPLY(1, 6, 7, "tdpbssd");
    if constexpr (kProduct == 2) APERTO_MULTIPLY(2, 4, 5, "tdpbssd");
    if constexpr (kProduct == 3) APERTO_MULTIPLY(3, 6, 7, "tdpbssd");
  } else {
    if constexpr (kProduct == 0) APERTO_MULTIPLY(0, 4, 5, "tdpbsud");
    if constexpr (kProduct == 1) APERTO_MULTIPLY(1, 6, 7, "tdpbsud");
    if constexpr (kProduct == 2) APERTO_MULTIPLY(2, 4, 5, "tdpbsud");
    if constexpr (kProduct == 3) APERTO_MULTIPLY(3, 6, 7, "tdpbsud");
  }
}
#undef APERTO_MULTIPLY

template <size_t kProduct>
inline void store_product(int32_t* products) {
  const long stride = 64;
  __asm__ volatile("tilestored %%tmm%c2, (%0, %1, 1)"
                   :
                   : "r"(products), "r"(stride), "i"(kProduct)
                   : "memory");
}

// One tile of weights times one panel of kRows rows, like q8_panel.
template <typename Block, size_t kRows>
void amx_panel(const uint8_t* weights, const uint8_t* scales, size_t blocks, const int8_t* values,
               const float* a_scales, const int32_t* starts, float* out, size_t out_stride) {
  constexpr size_t kProducts = kRows * kTileRows;
  alignas(64) int32_t products[kAhead * kProducts];
  __m512 sums[kRows];
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_ps();
  // Step b begins block b and ends block b - kAhead.
  for (size_t group = 0; group < blocks + kAhead; group += kAhead) {
#pragma GCC unroll 4
    for (size_t j = 0; j < kAhead; ++j) {
      const size_t b = group + j;
      const bool ends = b >= kAhead && b < blocks + kAhead;
      if (ends) {
        if (j == 0) store_product<0>(products);
        if (j == 1) store_product<1>(products + kProducts);
        if (j == 2) store_product<2>(products + 2 * kProducts);
        if (j == 3) store_product<3>(products + 3 * kProducts);
      }
      if (b < blocks) {
        const int8_t* block_values = values + b * kRows * kBlock;
        const uint8_t* block_weights = weights + b * 512;
        if (j == 0) begin_product<Block::kSigned, 0>(block_values, block_weights);
        if (j == 1) begin_product<Block::kSigned, 1>(block_values, block_weights);
        if (j == 2) begin_product<Block::kSigned, 2>(block_values, block_weights);
        if (j == 3) begin_product<Block::kSigned, 3>(block_values, block_weights);
      }
      if (ends) {
        const int32_t* dots = products + j * kProducts;
        const __m512 w_scales = Block::scales(scales);
#pragma GCC unroll 12
        for (size_t i = 0; i < kRows; ++i) {
          __m512i dot = _mm512_load_si512(dots + i * kTileRows);
          if constexpr (!Block::kSigned) dot = _mm512_add_epi32(dot, _mm512_set1_epi32(starts[i]));
          const __m512 scale = _mm512_mul_ps(w_scales, _mm512_set1_ps(a_scales[i]));
          sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[i]);
        }
        scales += Block::kScaleBytes;
        a_scales += kRows;
        starts += kRows;
      }
    }
  }
#pragma GCC unroll 12
  for (size_t i = 0; i < kRows; ++i) store(out + i * out_stride, sums[i]);
}

// MXFP4 blocks whose codes were turned into twice their values, signed bytes.
struct SignedMxfp4Block {
  static constexpr bool kSigned = true;
  static constexpr size_t kScaleBytes = kTileRows;
  static inline __m512 scales(const uint8_t* scales) { return Mxfp4Block::scales(scales); }
};

struct OffsetQ8Block {
  static constexpr bool kSigned = false;
  static constexpr size_t kScaleBytes = Q8Block::kScaleBytes;
  static inline __m512 scales(const uint8_t* scales) { return Q8Block::scales(scales); }
};

inline void unpack_signed(const uint8_t* tile, size_t blocks, uint8_t* bytes) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
  const __m512i nibble = _mm512_set1_epi8(0xf);
  for (size_t j = 0; j < blocks * 4; ++j) {
    const __m512i codes = _mm512_loadu_si512(tile + j * 64);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    const __m512i low = _mm512_and_si512(codes, nibble);
    _mm512_store_si512(bytes + j * 128, _mm512_shuffle_epi8(table, low));
    _mm512_store_si512(bytes + j * 128 + 64, _mm512_shuffle_epi8(table, high));
  }
}

template <typename Block, size_t kRows = kPanelRows>
inline void amx_panel_of(size_t count, const uint8_t* weights, const uint8_t* scales, size_t blocks,
                         const int8_t* values, const float* a_scales, const int32_t* starts,
                         float* out, size_t out_stride) {
  if (count == kRows) {
    amx_panel<Block, kRows>(weights, scales, blocks, values, a_scales, starts, out, out_stride);
  } else if constexpr (kRows > 1) {
    amx_panel_of<Block, kRows - 1>(count, weights, scales, blocks, values, a_scales, starts, out,
                                   out_stride);
  }
}

// All panels of a batch; the weights' codes are bytes already.
template <typename Block>
inline void amx_panels(const uint8_t* weights, const uint8_t* scales, const Q8Panels& a, float* out,
                       size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  size_t configured = 0;
  for (size_t panel = 0; panel < num_panels(a.num_rows); ++panel) {
    const size_t begin = panel_begin(a.num_rows, panel);
    const size_t count = panel_begin(a.num_rows, panel + 1) - begin;
    if (count != configured) {
      const TileConfig config(count);
      __asm__ volatile("ldtilecfg %0" : : "m"(config));
      configured = count;
    }
    amx_panel_of<Block>(count, weights, scales, blocks, a.values + begin * a.k,
                        a.scales + begin * blocks, a.starts + begin * blocks,
                        out + begin * out_stride, out_stride);
  }
  __asm__ volatile("tilerelease");
}
