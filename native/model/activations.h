// Every buffer of the forward pass, allocated once for the largest batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace aperto {

// Rows of activations as int8 blocks, see Q8Panels.
struct Q8Buffer {
  AlignedBuffer<int8_t> values;   // [rows, k]
  AlignedBuffer<float> scales;    // [rows, k / 32]
  AlignedBuffer<int32_t> starts;  // [rows, k / 32]

  Q8Buffer(size_t rows, size_t k)
      : values(rows * k), scales(rows * (k / kBlock)), starts(rows * (k / kBlock)) {}

  // A view of num_rows rows of width k, starting at `first`.
  Q8Panels panels(size_t k, size_t num_rows, size_t first = 0) {
    const size_t blocks = k / kBlock;
    return {values.data() + first * k, scales.data() + first * blocks,
            starts.data() + first * blocks, k, num_rows};
  }
};

// Quantises x, [k], into row `row` of the panels.
inline void quantize_row(const Kernels& kernels, const float* x, size_t row, int32_t offset,
                         const Q8Panels& out) {
  const size_t blocks = out.k / kBlock;
  const size_t panel = panel_of(out.num_rows, row);
  const size_t begin = panel_begin(out.num_rows, panel);
  const size_t width = panel_begin(out.num_rows, panel + 1) - begin;
  const size_t first = begin * blocks + (row - begin);  // index of the row's first scale
  kernels.f32_quantize_q8(x, out.k, offset, width, out.values + first * kBlock, out.scales + first,
                          out.starts + first);
}

struct Activations {
  size_t max_tokens;
  size_t max_chosen;  // experts of a token, for the layer with the most
  size_t max_slots;   // tokens x experts of a token

  AlignedBuffer<float> x;                  // [tokens, hidden], the residual stream
  AlignedBuffer<float> normed;             // [tokens, hidden]
  AlignedBuffer<float> rope_cos;           // [tokens, head_dim / 2], concentration included
  AlignedBuffer<float> rope_sin;           // [tokens, head_dim / 2]
  AlignedBuffer<float> qkv;                // [tokens, q + 2 kv]
  AlignedBuffer<float> attended;           // [tokens, q]
  AlignedBuffer<float> router;             // [tokens, experts rounded up to 16]
  AlignedBuffer<int32_t> chosen;           // [slots], experts of each token, best first
  AlignedBuffer<float> weight;             // [slots], softmax over the chosen
  AlignedBuffer<int32_t> row_of;           // [slots], the slot's row after grouping by expert
  AlignedBuffer<int32_t> token_of;         // [slots], the token of each grouped row
  AlignedBuffer<float> act;                // [slots, inter], grouped by expert
  AlignedBuffer<float> expert_out;         // [slots, hidden], grouped by expert
  Q8Buffer q8;                             // quantised input of the current dense product, or act
  Q8Buffer q8_experts;                     // [slots, hidden], normed, grouped by expert
  std::vector<AlignedBuffer<float>> gate;  // a thread: [slots of one expert, 16]
  std::vector<AlignedBuffer<float>> up;    // a thread: the same
  std::vector<AlignedBuffer<uint8_t>> unpacked;  // a thread: one tile's weights as bytes

  std::vector<float> low;  // [slots, max_low], projections of low-rank changes
  size_t max_low = 0;

  // least_chosen: experts of a token that a variant wants, where they are more than the model's.
  Activations(const ModelShape& shape, size_t tokens, int num_threads, size_t least_chosen = 1)
      : max_tokens(tokens),
        max_chosen(std::max(max_experts_per_token(shape), least_chosen)),
        max_slots(tokens * max_chosen),
        x(tokens * shape.hidden_size),
        normed(tokens * shape.hidden_size),
        rope_cos(tokens * shape.head_dim / 2),
        rope_sin(tokens * shape.head_dim / 2),
        qkv(tokens * shape.qkv_size()),
        attended(tokens * shape.q_size()),
        router(tokens * round_up(max_experts(shape), kTileRows)),
        chosen(max_slots),
        weight(max_slots),
        row_of(max_slots),
        token_of(max_slots),
        act(max_slots * shape.intermediate_size),
        expert_out(max_slots * shape.hidden_size),
        q8(max_slots, widest(shape)),
        q8_experts(max_slots, shape.hidden_size) {
    for (int thread = 0; thread < num_threads; ++thread) {
      unpacked.emplace_back(kTileRows * widest(shape));
      gate.emplace_back(tokens * kTileRows);
      up.emplace_back(tokens * kTileRows);
    }
  }

 private:
  static size_t widest(const ModelShape& shape) {
    return std::max({shape.hidden_size, shape.q_size(), shape.intermediate_size});
  }
  static size_t max_experts(const ModelShape& shape) {
    size_t most = 0;
    for (const LayerShape& layer : shape.layers) most = std::max(most, layer.num_experts);
    return most;
  }
  static size_t max_experts_per_token(const ModelShape& shape) {
    size_t most = 0;
    for (const LayerShape& layer : shape.layers) most = std::max(most, layer.experts_per_token);
    return most;
  }
};

}  // namespace aperto
