// Draws one token from a row of logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace aperto {

struct SampleRequest {
  double temperature;  // 0: the most likely token
  double top_p;        // in (0, 1]
  double min_p;        // in [0, 1]
  size_t top_k;        // 0: all
  double presence_penalty;
  double frequency_penalty;
  double repetition_penalty;
  std::span<const int32_t> bias_ids;
  std::span<const float> bias_values;
  std::span<const int32_t> count_ids;  // tokens of prompt and answer
  std::span<const int32_t> counts;     // how often each was generated, 0 for the prompt's
  std::span<const uint32_t> mask;      // one bit a token, set where allowed; empty allows all
  uint64_t seed;
  uint64_t position;
  size_t num_top_logprobs;
};

// Logprobs are of the logits as given: before bias, penalties, mask and temperature.
struct SampleResult {
  int32_t token;
  float logprob;
  std::vector<std::pair<int32_t, float>> top;  // best first, ties to the lower id
};

// Keeps a copy of one row and an index list, so that calls allocate nothing of the vocabulary's
// size. Not thread-safe.
class Sampler {
 public:
  Sampler(const Kernels& kernels, size_t vocab_size);

  // The draw depends on the logits, the request and (seed, position) alone.
  // Throws std::invalid_argument when the mask allows no token or an id is out of range.
  SampleResult sample(const float* logits, const SampleRequest& request);

  // Log of the sum of exponentials of a row, so that logprob(i) = logits[i] - this.
  double log_sum_exp(const float* logits) const;

 private:
  const float* adjust(const float* logits, const SampleRequest& request);
  int32_t draw(const float* logits, const SampleRequest& request);
  int32_t draw_from_all(const float* logits, float max, const SampleRequest& request,
                        double uniform) const;
  int32_t draw_from_best(const float* logits, float max, const SampleRequest& request,
                         double uniform);
  std::vector<std::pair<int32_t, float>> top(const float* logits, double log_sum, size_t count);

  const Kernels& kernels_;
  size_t vocab_size_;
  std::vector<float> adjusted_;
  std::vector<int32_t> order_;
};

// A number in [0, 1) from 53 bits of Philox4x32-10 (Salmon et al. 2011) at counter `position`.
double counter_uniform(uint64_t seed, uint64_t position);

}  // namespace aperto
