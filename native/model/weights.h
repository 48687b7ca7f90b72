// A model's weights in the kernels' layout: views of packed memory, and the packing itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/config.h"

namespace aperto {

// How a packed tensor is stored.
enum class WeightKind {
  kF32,       // plain floats: norms, biases, sinks
  kF32Tiles,  // tiles of 16 rows, see kernels.h
  kBf16Tiles,
  kQ8Tiles,
  kMxfp4Tiles,  // [experts] of tiles
  kF32Rows,     // embedding rows as they are
  kBf16Rows,
  kQ8Rows,  // GGUF Q8_0 blocks: f16 scale, 32 int8
};

WeightKind parse_weight_kind(const std::string& name);

// One packed tensor: bytes owned by someone else, usually a file mapping.
struct PackedTensor {
  WeightKind kind;
  const uint8_t* data;
  size_t bytes;
};
using PackedTensors = std::map<std::string, PackedTensor>;

// A matrix [rows, k] in tiles of 16 rows.
struct TiledWeight {
  WeightKind kind;
  const uint8_t* tiles;
  size_t rows;
  size_t k;
  size_t tile_bytes;

  size_t num_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  const uint8_t* tile(size_t index) const { return tiles + index * tile_bytes; }
  size_t bytes() const { return num_tiles() * tile_bytes; }
};

struct LayerWeights {
  const float* attn_norm;            // [hidden]
  TiledWeight qkv;                   // [q + 2 kv, hidden]: rows of q, then k, then v
  const float* qkv_bias;             // [q + 2 kv]
  const float* sinks;                // [heads]
  TiledWeight out;                   // [hidden, q]
  const float* out_bias;             // [hidden]
  const float* moe_norm;             // [hidden]
  TiledWeight router;                // [experts, hidden]
  const float* router_bias;          // [experts]
  std::vector<TiledWeight> gate_up;  // an expert: [2 inter, hidden], tiles alternate gate and up
  const float* gate_up_bias;         // [experts, 2 inter], in the order of the tiles' rows
  std::vector<TiledWeight> down;     // an expert: [hidden, inter]
  const float* down_bias;            // [experts, hidden]
};

struct Weights {
  WeightKind embedding_kind;
  const uint8_t* embedding;  // [vocab, hidden] rows
  TiledWeight head;          // [vocab, hidden]
  const float* norm;         // [hidden]
  std::vector<LayerWeights> layers;
  bool quantized;  // dense weights are Q8, activations int8; else float activations throughout
};

// Looks up every tensor of `shape` by name. Throws std::invalid_argument for one that is missing,
// has another kind than its role allows or another size than its shape demands.
Weights make_weights(const ModelShape& shape, const PackedTensors& tensors);

// Reads row `token` of the embedding as floats. out: [hidden].
void embed(const Weights& weights, size_t hidden, size_t token, float* out);

// Quantises `count` values to GGUF's Q8_0 blocks of 34 bytes: d = amax / 127 stored as f16,
// q = round half away from zero of x * (1 / d). count is a multiple of 32.
void quantize_q8_0(const float* values, size_t count, uint8_t* blocks);
void quantize_q8_0(const uint16_t* bf16, size_t count, uint8_t* blocks);

// Pack rows into tiles; the last tile is padded with zero rows.
void pack_q8_tiles(const uint8_t* blocks, size_t rows, size_t k, uint8_t* tiles);
void pack_bf16_tiles(const uint16_t* values, size_t rows, size_t k, uint8_t* tiles);
void pack_f32_tiles(const float* values, size_t rows, size_t k, uint8_t* tiles);
// blocks: [rows, k / 32, 16], byte j = elements 2j (low nibble) and 2j + 1; scales: [rows, k / 32].
// With `interleaved`, even source rows (gate) and odd ones (up) go to alternating tiles.
void pack_mxfp4_tiles(const uint8_t* blocks, const uint8_t* scales, size_t rows, size_t k,
                      bool interleaved, uint8_t* tiles);

// Bytes of [rows, k] in tiles of `kind`.
size_t tiles_bytes(WeightKind kind, size_t rows, size_t k);

// Source row of row r of tile t when even and odd rows go to alternating tiles.
constexpr size_t interleaved_row(size_t tile, size_t r) {
  return (tile / 2 * kTileRows + r) * 2 + tile % 2;
}

}  // namespace aperto
