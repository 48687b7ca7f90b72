#include "sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kernels/scalar_math.h"

namespace aperto {
namespace {

// Exponentials are summed in chunks whose totals add up in double.
constexpr size_t kChunk = 4096;

// How many of the best candidates top-p looks at first; it doubles until they hold the mass.
constexpr size_t kFirstCandidates = 256;

size_t best_index(const float* logits, size_t count) {
  return static_cast<size_t>(std::max_element(logits, logits + count) - logits);
}

}  // namespace

double counter_uniform(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0,
                         0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0];
    const uint64_t second = uint64_t{0xCD9E8D57} * counter[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(second),
        static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(first)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  const uint64_t bits = (uint64_t{counter[0]} << 32) | counter[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampler::Sampler(const Kernels& kernels, size_t vocab_size)
    : kernels_(kernels), vocab_size_(vocab_size) {}

double Sampler::log_sum_exp(const float* logits) const {
  const float max = logits[best_index(logits, vocab_size_)];
  double sum = 0.0;
  for (size_t begin = 0; begin < vocab_size_; begin += kChunk) {
    sum += kernels_.f32_exp_sum(logits + begin, max, 1.0f, std::min(kChunk, vocab_size_ - begin));
  }
  return static_cast<double>(max) + std::log(sum);
}

const float* Sampler::adjust(const float* logits, const SampleRequest& request) {
  const bool penalised = !request.count_ids.empty();
  if (!penalised && request.bias_ids.empty() && request.mask.empty()) return logits;
  adjusted_.assign(logits, logits + vocab_size_);
  for (size_t i = 0; i < request.count_ids.size(); ++i) {
    const int32_t id = request.count_ids[i];
    check(id >= 0 && static_cast<size_t>(id) < vocab_size_, "counted token ", id,
          " is out of range; the vocabulary has ", vocab_size_, " entries");
    double value = adjusted_[id];
    value = value > 0 ? value / request.repetition_penalty : value * request.repetition_penalty;
    if (request.counts[i] > 0) {
      value -= request.presence_penalty + request.frequency_penalty * request.counts[i];
    }
    adjusted_[id] = static_cast<float>(value);
  }
  for (size_t i = 0; i < request.bias_ids.size(); ++i) {
    const int32_t id = request.bias_ids[i];
    check(id >= 0 && static_cast<size_t>(id) < vocab_size_, "logit bias for token ", id,
          " is out of range; the vocabulary has ", vocab_size_, " entries");
    adjusted_[id] += request.bias_values[i];
  }
  if (!request.mask.empty()) {
    check(request.mask.size() * 32 >= vocab_size_, "the mask has ", request.mask.size() * 32,
          " bits; expected at least ", vocab_size_);
    bool any = false;
    for (size_t id = 0; id < vocab_size_; ++id) {
      const bool allowed = (request.mask[id / 32] >> (id % 32)) & 1;
      any |= allowed;
      if (!allowed) adjusted_[id] = -std::numeric_limits<float>::infinity();
    }
    check(any, "the mask allows no token");
  }
  return adjusted_.data();
}

int32_t Sampler::draw_from_all(const float* logits, float max, const SampleRequest& request,
                               double uniform) const {
  const float scale = static_cast<float>(1.0 / request.temperature);
  std::vector<double> sums((vocab_size_ + kChunk - 1) / kChunk);
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = kernels_.f32_exp_sum(logits + i * kChunk, max, scale,
                                   std::min(kChunk, vocab_size_ - i * kChunk));
  }
  double left = uniform * std::accumulate(sums.begin(), sums.end(), 0.0);
  size_t chunk = 0;
  while (chunk + 1 < sums.size() && left >= sums[chunk]) left -= sums[chunk++];
  const size_t end = std::min(vocab_size_, (chunk + 1) * kChunk);
  // A chunk's total and the running sum below may differ in the last bits: the last candidate
  // with any weight takes what is left.
  int32_t last = -1;
  for (size_t id = chunk * kChunk; id < end; ++id) {
    const double weight = scalar_exp((logits[id] - max) * scale);
    if (weight == 0.0) continue;
    last = static_cast<int32_t>(id);
    if (left < weight) return last;
    left -= weight;
  }
  return last >= 0 ? last : static_cast<int32_t>(best_index(logits, vocab_size_));
}

int32_t Sampler::draw_from_best(const float* logits, float max, const SampleRequest& request,
                                double uniform) {
  const float scale = static_cast<float>(1.0 / request.temperature);
  order_.resize(vocab_size_);
  std::iota(order_.begin(), order_.end(), 0);
  const auto better = [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  double total = 0.0;
  if (request.top_k == 0) {
    for (size_t begin = 0; begin < vocab_size_; begin += kChunk) {
      total +=
          kernels_.f32_exp_sum(logits + begin, max, scale, std::min(kChunk, vocab_size_ - begin));
    }
  }
  const size_t limit = request.top_k == 0 ? vocab_size_ : std::min(request.top_k, vocab_size_);
  size_t sorted = 0;
  const auto weight_of = [&](size_t rank) {
    if (rank >= sorted) {
      const size_t next = std::min(limit, std::max(kFirstCandidates, sorted * 2));
      std::partial_sort(order_.begin() + sorted, order_.begin() + next, order_.end(), better);
      sorted = next;
    }
    return static_cast<double>(scalar_exp((logits[order_[rank]] - max) * scale));
  };
  if (request.top_k != 0) {
    for (size_t rank = 0; rank < limit; ++rank) total += weight_of(rank);
  }
  // top-k first, then top-p over what it left, then min-p relative to the best.
  double mass = 0.0;
  size_t kept = 0;
  while (kept < limit) {
    const double weight = weight_of(kept);
    if (kept > 0 && (weight < request.min_p || weight == 0.0 || mass >= request.top_p * total)) {
      break;
    }
    mass += weight;
    ++kept;
  }
  double left = uniform * mass;
  for (size_t rank = 0; rank + 1 < kept; ++rank) {
    const double weight = weight_of(rank);
    if (left < weight) return order_[rank];
    left -= weight;
  }
  return order_[kept - 1];
}

int32_t Sampler::draw(const float* logits, const SampleRequest& request) {
  const size_t best = best_index(logits, vocab_size_);
  if (request.temperature == 0.0) return static_cast<int32_t>(best);
  const double uniform = counter_uniform(request.seed, request.position);
  const bool all = request.top_k == 0 && request.top_p >= 1.0 && request.min_p == 0.0;
  return all ? draw_from_all(logits, logits[best], request, uniform)
             : draw_from_best(logits, logits[best], request, uniform);
}

std::vector<std::pair<int32_t, float>> Sampler::top(const float* logits, double log_sum,
                                                    size_t count) {
  count = std::min(count, vocab_size_);
  order_.resize(vocab_size_);
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(),
                    [logits](int32_t a, int32_t b) {
                      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                    });
  std::vector<std::pair<int32_t, float>> result;
  for (size_t i = 0; i < count; ++i) {
    result.emplace_back(order_[i], static_cast<float>(logits[order_[i]] - log_sum));
  }
  return result;
}

SampleResult Sampler::sample(const float* logits, const SampleRequest& request) {
  SampleResult result;
  result.token = draw(adjust(logits, request), request);
  const double log_sum = log_sum_exp(logits);
  result.logprob = static_cast<float>(logits[result.token] - log_sum);
  if (request.num_top_logprobs > 0) result.top = top(logits, log_sum, request.num_top_logprobs);
  return result;
}

}  // namespace aperto
