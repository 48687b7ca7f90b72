// The plain kernels: scalar, in the exact order of operations that every fast set follows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

float fold_lanes(float* lanes) {
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

void f32_rmsnorm(const float* x, const float* weight, float eps, size_t n, float* y) {
  float lanes[kLanes] = {};
  for (size_t i = 0; i < n; ++i) lanes[i % kLanes] = std::fma(x[i], x[i], lanes[i % kLanes]);
  const float mean = fold_lanes(lanes) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (size_t i = 0; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

void f32_quantize_q8(const float* x, size_t n, int32_t offset, size_t stride, int8_t* values,
                     float* scales, int32_t* starts) {
  for (size_t block = 0; block < n / kBlock; ++block) {
    const float* in = x + block * kBlock;
    int8_t* out = values + block * stride * kBlock;
    float amax = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) amax = std::max(amax, std::fabs(in[i]));
    const float inverse = amax > kMinAmax ? 127.0f / amax : 0.0f;
    int32_t sum = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      out[i] = static_cast<int8_t>(std::nearbyint(in[i] * inverse));
      sum += out[i];
    }
    scales[block * stride] = amax > kMinAmax ? amax / 127.0f : 0.0f;
    starts[block * stride] = -offset * sum;
  }
}

// Code of row r at k of a tile whose first nibble is at `tile`.
uint8_t mxfp4_code(const uint8_t* tile, size_t r, size_t k) {
  const size_t in_block = k % kBlock;
  const size_t in_group = in_block % 8;
  const uint8_t byte =
      tile[k / kBlock * kMxfp4BlockBytes + in_block / 8 * 64 + r * 4 + in_group % 4];
  return in_group < 4 ? byte & 0xf : byte >> 4;
}

// Where block b of a row lies: index of its scale, which times 32 is that of its first value.
size_t block_index(const Q8Panels& a, size_t row, size_t b) {
  const size_t panel = panel_of(a.num_rows, row);
  const size_t begin = panel_begin(a.num_rows, panel);
  const size_t width = panel_begin(a.num_rows, panel + 1) - begin;
  return begin * (a.k / kBlock) + b * width + (row - begin);
}

// Shared by MXFP4 and Q8 tiles: `weight(r, k)` is an integer, `scale(r, b)` its block's factor.
template <typename Weight, typename Scale>
void q8_matmul(Weight weight, Scale scale, const Q8Panels& a, float* out, size_t out_stride) {
  for (size_t row = 0; row < a.num_rows; ++row) {
    for (size_t r = 0; r < kTileRows; ++r) {
      float sum = 0.0f;
      for (size_t b = 0; b < a.k / kBlock; ++b) {
        const size_t index = block_index(a, row, b);
        int32_t dot = 0;
        for (size_t j = 0; j < kBlock; ++j) {
          dot += weight(r, b * kBlock + j) * a.values[index * kBlock + j];
        }
        sum = std::fma(static_cast<float>(dot), scale(r, b) * a.scales[index], sum);
      }
      out[row * out_stride + r] = sum;
    }
  }
}

void q8_mxfp4w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t*, float* out,
                      size_t out_stride) {
  const uint8_t* scales = tile + a.k / kBlock * kMxfp4BlockBytes;
  q8_matmul([=](size_t r, size_t k) { return int32_t{kMxfp4Twice[mxfp4_code(tile, r, k)]}; },
            [=](size_t r, size_t b) { return half_e8m0(scales[b * kTileRows + r]); }, a, out,
            out_stride);
}

void q8_q8w_matmul(const uint8_t* tile, const Q8Panels& a, uint8_t*, float* out,
                   size_t out_stride) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile + a.k / kBlock * 512);
  const auto weight = [=](size_t r, size_t k) {
    const size_t j = k % kBlock;
    return tile[k / kBlock * 512 + j / 4 * 64 + r * 4 + j % 4] - kQ8Offset;
  };
  q8_matmul(
      weight, [=](size_t r, size_t b) { return half_to_float(scales[b * kTileRows + r]); }, a, out,
      out_stride);
}

void f32_mxfp4w_matmul(const uint8_t* tile, const F32Rows& a, const int32_t* rows, size_t num_rows,
                       float* out, size_t out_stride) {
  const size_t blocks = a.k / kBlock;
  const uint8_t* scales = tile + blocks * kMxfp4BlockBytes;
  for (size_t i = 0; i < num_rows; ++i) {
    const float* x = a.values + (rows ? rows[i] : i) * a.k;
    for (size_t r = 0; r < kTileRows; ++r) {
      float sum = 0.0f;
      for (size_t b = 0; b < blocks; ++b) {
        float in_block = 0.0f;
        for (size_t k = b * kBlock; k < (b + 1) * kBlock; ++k) {
          in_block =
              std::fma(static_cast<float>(kMxfp4Twice[mxfp4_code(tile, r, k)]), x[k], in_block);
        }
        sum = std::fma(in_block, half_e8m0(scales[b * kTileRows + r]), sum);
      }
      out[i * out_stride + r] = sum;
    }
  }
}

// Shared by BF16 and F32 tiles: `weight(k, r)` is the only difference.
template <typename Weight>
void f32_dense_matmul(Weight weight, const F32Rows& a, const int32_t* rows, size_t num_rows,
                      float* out, size_t out_stride) {
  for (size_t i = 0; i < num_rows; ++i) {
    const float* x = a.values + (rows ? rows[i] : i) * a.k;
    for (size_t r = 0; r < kTileRows; ++r) {
      float sum = 0.0f;
      for (size_t begin = 0; begin < a.k; begin += kBlock) {
        float in_block = 0.0f;
        for (size_t k = begin; k < begin + kBlock; ++k) {
          in_block = std::fma(weight(k, r), x[k], in_block);
        }
        sum += in_block;
      }
      out[i * out_stride + r] = sum;
    }
  }
}

void f32_bf16w_matmul(const uint8_t* tile, const F32Rows& a, const int32_t* rows, size_t num_rows,
                      float* out, size_t out_stride) {
  const uint16_t* weights = reinterpret_cast<const uint16_t*>(tile);
  f32_dense_matmul(
      [weights](size_t k, size_t r) { return bf16_to_float(weights[k * kTileRows + r]); }, a, rows,
      num_rows, out, out_stride);
}

void f32_f32w_matmul(const uint8_t* tile, const F32Rows& a, const int32_t* rows, size_t num_rows,
                     float* out, size_t out_stride) {
  const float* weights = reinterpret_cast<const float*>(tile);
  f32_dense_matmul([weights](size_t k, size_t r) { return weights[k * kTileRows + r]; }, a, rows,
                   num_rows, out, out_stride);
}

void f32_swiglu(const float* gate, const float* up, float limit, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) {
    const float g = std::min(gate[i], limit);
    const float u = std::max(std::min(up[i], limit), -limit);
    const float swish = g / (1.0f + scalar_exp(g * -1.702f));
    out[i] = swish * (u + 1.0f);
  }
}

void f32_axpy(float scale, const float* x, size_t n, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] = std::fma(scale, x[i], y[i]);
}

void f32_rope(const float* cos, const float* sin, float scale, size_t half, float* x) {
  for (size_t d = 0; d < half; ++d) {
    const float a = x[d];
    const float b = x[d + half];
    x[d] = std::fma(a, cos[d], -(b * sin[d])) * scale;
    x[d + half] = std::fma(b, cos[d], a * sin[d]) * scale;
  }
}

template <typename Element, float (*ToFloat)(Element)>
void attend(const AttendQueries& queries, const Element* keys, const Element* values,
            AttendState state) {
  const size_t head_dim = queries.head_dim;
  for (size_t i = 0; i < queries.count; ++i) {
    const float* query = queries.values + i * head_dim;
    float* output = state.values + i * head_dim;
    float weights[kPageTokens];
    float page_max = -std::numeric_limits<float>::infinity();
    for (size_t slot = queries.begin; slot < queries.end; ++slot) {
      float score = 0.0f;
      for (size_t d = 0; d < head_dim; ++d) {
        score = std::fma(query[d], ToFloat(keys[d * kPageTokens + slot]), score);
      }
      weights[slot] = score;
      page_max = std::max(page_max, score);
    }
    const float max = std::max(state.max[i], page_max);
    const float keep = scalar_exp(state.max[i] - max);
    float lanes[kLanes] = {};
    for (size_t slot = 0; slot < kPageTokens; ++slot) {
      const bool visible = slot >= queries.begin && slot < queries.end;
      weights[slot] = visible ? scalar_exp(weights[slot] - max) : 0.0f;
      lanes[slot % kLanes] += weights[slot];
    }
    state.max[i] = max;
    state.sum[i] = std::fma(state.sum[i], keep, fold_lanes(lanes));
    for (size_t d = 0; d < head_dim; ++d) output[d] *= keep;
    for (size_t slot = queries.begin; slot < queries.end; ++slot) {
      for (size_t d = 0; d < head_dim; ++d) {
        output[d] = std::fma(weights[slot], ToFloat(values[slot * head_dim + d]), output[d]);
      }
    }
  }
}

float identity(float value) { return value; }

float f32_exp_sum(const float* x, float max, float scale, size_t n) {
  float lanes[kLanes] = {};
  for (size_t i = 0; i < n; ++i) lanes[i % kLanes] += scalar_exp((x[i] - max) * scale);
  return fold_lanes(lanes);
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

const Kernels kReferenceKernels = {
    "reference",
    f32_rmsnorm,
    f32_quantize_q8,
    q8_mxfp4w_matmul,
    q8_q8w_matmul,
    f32_mxfp4w_matmul,
    f32_bf16w_matmul,
    f32_f32w_matmul,
    f32_swiglu,
    f32_axpy,
    f32_rope,
    attend<uint16_t, half_to_float>,
    attend<float, identity>,
    f32_exp_sum,
    mxfp4_decode_bf16,
};

}  // namespace aperto
