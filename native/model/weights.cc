#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/mxfp4.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

constexpr size_t kQ8BlockBytes = 34;

const PackedTensor& find(const PackedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  check(found != tensors.end(), "packed weights: tensor '", name, "' is missing");
  return found->second;
}

void check_bytes(const std::string& name, size_t found, size_t expected) {
  check(found == expected, "packed weights: tensor '", name, "' has ", found, " bytes; expected ",
        expected);
}

const float* find_floats(const PackedTensors& tensors, const std::string& name, size_t count) {
  const PackedTensor& tensor = find(tensors, name);
  check(tensor.kind == WeightKind::kF32, "packed weights: tensor '", name, "' is not f32");
  check_bytes(name, tensor.bytes, count * sizeof(float));
  return reinterpret_cast<const float*>(tensor.data);
}

bool is_dense_tiles(WeightKind kind) {
  return kind == WeightKind::kF32Tiles || kind == WeightKind::kBf16Tiles ||
         kind == WeightKind::kQ8Tiles;
}

size_t tile_bytes(WeightKind kind, size_t k) {
  switch (kind) {
    case WeightKind::kF32Tiles:
      return f32_tile_bytes(k);
    case WeightKind::kBf16Tiles:
      return bf16_tile_bytes(k);
    case WeightKind::kQ8Tiles:
      return q8_tile_bytes(k);
    case WeightKind::kMxfp4Tiles:
      return mxfp4_tile_bytes(k);
    default:
      check(false, "weight kind ", static_cast<int>(kind), " is not tiled");
      return 0;
  }
}

TiledWeight find_dense(const PackedTensors& tensors, const std::string& name, size_t rows,
                       size_t k) {
  const PackedTensor& tensor = find(tensors, name);
  check(is_dense_tiles(tensor.kind), "packed weights: tensor '", name, "' is not in dense tiles");
  check_bytes(name, tensor.bytes, tiles_bytes(tensor.kind, rows, k));
  return {tensor.kind, tensor.data, rows, k, tile_bytes(tensor.kind, k)};
}

std::vector<TiledWeight> find_experts(const PackedTensors& tensors, const std::string& name,
                                      size_t experts, size_t rows, size_t k) {
  const PackedTensor& tensor = find(tensors, name);
  check(tensor.kind == WeightKind::kMxfp4Tiles, "packed weights: tensor '", name,
        "' is not in MXFP4 tiles");
  const size_t expert_bytes = tiles_bytes(tensor.kind, rows, k);
  check_bytes(name, tensor.bytes, experts * expert_bytes);
  std::vector<TiledWeight> result;
  for (size_t e = 0; e < experts; ++e) {
    result.push_back({tensor.kind, tensor.data + e * expert_bytes, rows, k, mxfp4_tile_bytes(k)});
  }
  return result;
}

LayerWeights make_layer(const ModelShape& shape, size_t index, const PackedTensors& tensors) {
  const LayerShape& layer = shape.layers[index];
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const size_t hidden = shape.hidden_size;
  const size_t inter = shape.intermediate_size;
  const size_t experts = layer.num_experts;
  const auto floats = [&](const char* name, size_t count) {
    return find_floats(tensors, prefix + name, count);
  };
  LayerWeights w;
  w.attn_norm = floats("attn.norm", hidden);
  w.qkv = find_dense(tensors, prefix + "attn.qkv", shape.qkv_size(), hidden);
  w.qkv_bias = floats("attn.qkv.bias", shape.qkv_size());
  w.sinks = floats("attn.sinks", shape.num_heads);
  w.out = find_dense(tensors, prefix + "attn.out", hidden, shape.q_size());
  w.out_bias = floats("attn.out.bias", hidden);
  w.moe_norm = floats("moe.norm", hidden);
  w.router = find_dense(tensors, prefix + "moe.router", experts, hidden);
  check(w.router.kind != WeightKind::kQ8Tiles, "packed weights: layer ", index,
        ": the router must not be quantised");
  w.router_bias = floats("moe.router.bias", experts);
  w.gate_up = find_experts(tensors, prefix + "moe.gate_up", experts, 2 * inter, hidden);
  w.gate_up_bias = floats("moe.gate_up.bias", experts * 2 * inter);
  w.down = find_experts(tensors, prefix + "moe.down", experts, hidden, inter);
  w.down_bias = floats("moe.down.bias", experts * hidden);
  return w;
}

template <typename ToFloat>
void quantize_block(ToFloat value, uint8_t* block) {
  float amax = 0.0f;
  for (size_t i = 0; i < kBlock; ++i) amax = std::max(amax, std::fabs(value(i)));
  const float d = amax / 127.0f;
  float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  if (std::isinf(inverse)) inverse = 0.0f;  // d is denormal, its f16 zero
  const uint16_t half = float_to_half(d);
  std::memcpy(block, &half, sizeof half);
  for (size_t i = 0; i < kBlock; ++i) {
    block[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::round(value(i) * inverse)));
  }
}

}  // namespace

WeightKind parse_weight_kind(const std::string& name) {
  static const std::map<std::string, WeightKind> kinds = {
      {"f32", WeightKind::kF32},
      {"f32_tiles", WeightKind::kF32Tiles},
      {"bf16_tiles", WeightKind::kBf16Tiles},
      {"q8_tiles", WeightKind::kQ8Tiles},
      {"mxfp4_tiles", WeightKind::kMxfp4Tiles},
      {"f32_rows", WeightKind::kF32Rows},
      {"bf16_rows", WeightKind::kBf16Rows},
      {"q8_rows", WeightKind::kQ8Rows},
  };
  const auto found = kinds.find(name);
  check(found != kinds.end(), "unknown weight kind '", name, "'");
  return found->second;
}

size_t tiles_bytes(WeightKind kind, size_t rows, size_t k) {
  return (rows + kTileRows - 1) / kTileRows * tile_bytes(kind, k);
}

Weights make_weights(const ModelShape& shape, const PackedTensors& tensors) {
  Weights w;
  const PackedTensor& embedding = find(tensors, "embedding");
  const size_t values = shape.vocab_size * shape.hidden_size;
  size_t expected = 0;
  switch (embedding.kind) {
    case WeightKind::kF32Rows:
      expected = values * 4;
      break;
    case WeightKind::kBf16Rows:
      expected = values * 2;
      break;
    case WeightKind::kQ8Rows:
      expected = values / kBlock * kQ8BlockBytes;
      break;
    default:
      check(false, "packed weights: tensor 'embedding' is not in rows");
  }
  check_bytes("embedding", embedding.bytes, expected);
  w.embedding_kind = embedding.kind;
  w.embedding = embedding.data;
  w.head = find_dense(tensors, "head", shape.vocab_size, shape.hidden_size);
  w.norm = find_floats(tensors, "norm", shape.hidden_size);
  w.quantized = w.head.kind == WeightKind::kQ8Tiles;
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    w.layers.push_back(make_layer(shape, i, tensors));
    for (const TiledWeight* dense : {&w.layers[i].qkv, &w.layers[i].out}) {
      check((dense->kind == WeightKind::kQ8Tiles) == w.quantized, "packed weights: layer ", i,
            ": attention and head must both be Q8 or both be float");
    }
  }
  return w;
}

void embed(const Weights& weights, size_t hidden, size_t token, float* out) {
  if (weights.embedding_kind == WeightKind::kF32Rows) {
    std::memcpy(out, weights.embedding + token * hidden * 4, hidden * 4);
  } else if (weights.embedding_kind == WeightKind::kBf16Rows) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(weights.embedding) + token * hidden;
    for (size_t i = 0; i < hidden; ++i) out[i] = bf16_to_float(row[i]);
  } else {
    const uint8_t* row = weights.embedding + token * (hidden / kBlock) * kQ8BlockBytes;
    for (size_t b = 0; b < hidden / kBlock; ++b) {
      const uint8_t* block = row + b * kQ8BlockBytes;
      uint16_t half;
      std::memcpy(&half, block, sizeof half);
      const float d = half_to_float(half);
      for (size_t i = 0; i < kBlock; ++i) {
        out[b * kBlock + i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
      }
    }
  }
}

void quantize_q8_0(const float* values, size_t count, uint8_t* blocks) {
  for (size_t b = 0; b < count / kBlock; ++b) {
    const float* in = values + b * kBlock;
    quantize_block([in](size_t i) { return in[i]; }, blocks + b * kQ8BlockBytes);
  }
}

void quantize_q8_0(const uint16_t* bf16, size_t count, uint8_t* blocks) {
  for (size_t b = 0; b < count / kBlock; ++b) {
    const uint16_t* in = bf16 + b * kBlock;
    quantize_block([in](size_t i) { return bf16_to_float(in[i]); }, blocks + b * kQ8BlockBytes);
  }
}

void pack_q8_tiles(const uint8_t* blocks, size_t rows, size_t k, uint8_t* tiles) {
  const size_t num_blocks = k / kBlock;
  for (size_t t = 0; t * kTileRows < rows; ++t) {
    uint8_t* tile = tiles + t * q8_tile_bytes(k);
    std::memset(tile, 0, q8_tile_bytes(k));
    std::memset(tile, kQ8Offset, num_blocks * 512);  // rows past the end: zero plus the offset
    uint8_t* scales = tile + num_blocks * 512;
    for (size_t r = 0; r < kTileRows && t * kTileRows + r < rows; ++r) {
      const uint8_t* row = blocks + (t * kTileRows + r) * num_blocks * kQ8BlockBytes;
      for (size_t b = 0; b < num_blocks; ++b) {
        const uint8_t* block = row + b * kQ8BlockBytes;
        std::memcpy(scales + (b * kTileRows + r) * 2, block, 2);
        for (size_t i = 0; i < kBlock; ++i) {
          tile[b * 512 + i / 4 * 64 + r * 4 + i % 4] = block[2 + i] ^ 0x80;
        }
      }
    }
  }
}

namespace {

template <typename T>
void pack_plain_tiles(const T* values, size_t rows, size_t k, size_t bytes_a_tile, uint8_t* tiles) {
  for (size_t t = 0; t * kTileRows < rows; ++t) {
    std::memset(tiles + t * bytes_a_tile, 0, bytes_a_tile);
    T* tile = reinterpret_cast<T*>(tiles + t * bytes_a_tile);
    for (size_t r = 0; r < kTileRows && t * kTileRows + r < rows; ++r) {
      const T* row = values + (t * kTileRows + r) * k;
      for (size_t i = 0; i < k; ++i) tile[i * kTileRows + r] = row[i];
    }
  }
}

}  // namespace

void pack_bf16_tiles(const uint16_t* values, size_t rows, size_t k, uint8_t* tiles) {
  pack_plain_tiles(values, rows, k, bf16_tile_bytes(k), tiles);
}

void pack_f32_tiles(const float* values, size_t rows, size_t k, uint8_t* tiles) {
  pack_plain_tiles(values, rows, k, f32_tile_bytes(k), tiles);
}

void pack_mxfp4_tiles(const uint8_t* blocks, const uint8_t* scales, size_t rows, size_t k,
                      bool interleaved, uint8_t* tiles) {
  const size_t num_blocks = k / kBlock;
  for (size_t t = 0; t < rows / kTileRows; ++t) {
    uint8_t* tile = tiles + t * mxfp4_tile_bytes(k);
    uint8_t* tile_scales = tile + num_blocks * kMxfp4BlockBytes;
    std::memset(tile_scales, 0, mxfp4_tile_bytes(k) - num_blocks * kMxfp4BlockBytes);
    for (size_t r = 0; r < kTileRows; ++r) {
      const size_t row = interleaved ? interleaved_row(t, r) : t * kTileRows + r;
      for (size_t b = 0; b < num_blocks; ++b) {
        const uint8_t* in = blocks + (row * num_blocks + b) * 16;
        const uint8_t scale = scales[row * num_blocks + b];
        const bool zero = scale < kMxfp4MinScale;
        tile_scales[b * kTileRows + r] = zero ? kMxfp4MinScale : scale;
        uint8_t* out = tile + b * kMxfp4BlockBytes + r * 4;
        for (size_t i = 0; i < 16; ++i) {
          // Byte i of group j pairs k = 8 j + i with k = 8 j + 4 + i.
          const size_t low = i / 4 * 8 + i % 4;
          const size_t high = low + 4;
          const uint8_t low_code = (in[low / 2] >> (low % 2 * 4)) & 0xf;
          const uint8_t high_code = (in[high / 2] >> (high % 2 * 4)) & 0xf;
          out[i / 4 * 64 + i % 4] = zero ? 0 : static_cast<uint8_t>(low_code | (high_code << 4));
        }
      }
    }
  }
}

}  // namespace aperto
