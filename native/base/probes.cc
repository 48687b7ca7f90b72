#include "base/probes.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/cpu_info.h"

#ifdef APERTO_X86
#include <immintrin.h>
#endif

namespace aperto {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_arguments(int num_threads, double seconds) {
  check(num_threads >= 1 && num_threads <= 1024, "num_threads is ", num_threads,
        "; expected 1..1024");
  check(seconds > 0 && seconds <= 60, "seconds is ", seconds, "; expected 0 < seconds <= 60");
}

template <typename Body>
void run_threads(int num_threads, const Body& body) {
  std::vector<std::thread> threads;
  for (int thread = 1; thread < num_threads; ++thread) {
    threads.emplace_back([&body, thread] { body(thread); });
  }
  body(0);
  for (std::thread& thread : threads) thread.join();
}

// --- Memory ---------------------------------------------------------------------------------

constexpr size_t kWordsALine = 8;
// Lines asked for ahead of the loads: hardware prefetchers stop at page ends, this one does not.
// 16 measured best of 0, 16 and 64, and better than two to eight streams at once.
constexpr size_t kLinesAhead = 16;

// Reads [words, words + count) once; count is a multiple of kWordsALine.
uint64_t read_once(const uint64_t* words, size_t count) {
  uint64_t sums[kWordsALine] = {};
  for (size_t i = 0; i < count; i += kWordsALine) {
    __builtin_prefetch(words + std::min(i + kLinesAhead * kWordsALine, count - 1));
    for (size_t word = 0; word < kWordsALine; ++word) sums[word] += words[i + word];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

// --- Arithmetic -----------------------------------------------------------------------------

// Runs `rounds` rounds of kChains independent operations; the result only keeps the loop alive.
using Loop = uint64_t (*)(uint64_t rounds);

constexpr int kChains = 12;  // two ports x five cycles of latency, rounded up
constexpr uint64_t kSliceRounds = 100000;

struct Peak {
  Loop loop;
  uint64_t macs_a_round;
};

template <typename T>
uint64_t plain_loop(uint64_t rounds) {
  T sums[kChains];
  volatile T seed = 3;
  T a = seed, b = seed;
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<T>(i);
  for (uint64_t round = 0; round < rounds; ++round) {
    for (T& sum : sums) sum = static_cast<T>(sum + a * b);
    a = static_cast<T>(a + sums[0]);
  }
  T total = 0;
  for (T sum : sums) total = static_cast<T>(total + sum);
  return total > 0;
}

#ifdef APERTO_X86

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))) uint64_t
int8_vnni(uint64_t rounds) {
  volatile int seed = 0x01020304;
  const __m512i a = _mm512_set1_epi32(seed), b = _mm512_set1_epi32(seed);
  __m512i sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_epi32(i);
  for (uint64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
  }
  __m512i total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_epi32(total, sums[i]);
  return static_cast<uint64_t>(total[0]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) uint64_t f32_avx512(uint64_t rounds) {
  volatile float seed = 1e-3f;
  const __m512 a = _mm512_set1_ps(seed), b = _mm512_set1_ps(seed);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (uint64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  return static_cast<uint64_t>(total[0]);
}

// What AVX2 kernels have: pairs of products to 16 bits, pairs of those to 32, then an addition.
__attribute__((target("avx2,fma"))) uint64_t int8_avx2(uint64_t rounds) {
  volatile int seed = 0x01020304;
  const __m256i ones = _mm256_set1_epi16(1), b = _mm256_set1_epi32(seed);
  __m256i a = _mm256_set1_epi32(seed);
  __m256i sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_epi32(i);
  for (uint64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) {
      asm("" : "+x"(a));  // else the optimiser lifts the products, always the same, out
      const __m256i pairs = _mm256_maddubs_epi16(a, b);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    }
  }
  __m256i total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm256_add_epi32(total, sums[i]);
  return static_cast<uint64_t>(total[0]);
}

__attribute__((target("avx2,fma"))) uint64_t f32_avx2(uint64_t rounds) {
  volatile float seed = 1e-3f;
  const __m256 a = _mm256_set1_ps(seed), b = _mm256_set1_ps(seed);
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (uint64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm256_add_ps(total, sums[i]);
  return static_cast<uint64_t>(total[0]);
}

#endif

Peak int8_peak() {
#ifdef APERTO_X86
  if (cpu_info().avx512_vnni) return {int8_vnni, kChains * 64};
  if (cpu_info().avx2) return {int8_avx2, kChains * 32};
#endif
  return {plain_loop<uint32_t>, kChains};
}

Peak f32_peak() {
#ifdef APERTO_X86
  if (cpu_info().avx512) return {f32_avx512, kChains * 16};
  if (cpu_info().avx2) return {f32_avx2, kChains * 8};
#endif
  return {plain_loop<float>, kChains};
}

// A slice is short, so that its best one is free of interruptions by other processes.
double measure_peak(Peak peak, int num_threads, double seconds) {
  check_arguments(num_threads, seconds);
  std::vector<double> best(num_threads, 0.0);
  std::barrier start(num_threads);
  run_threads(num_threads, [&](int thread) {
    start.arrive_and_wait();
    volatile uint64_t sink = peak.loop(kSliceRounds);
    const auto begin = Clock::now();
    while (seconds_since(begin) < seconds) {
      const auto slice = Clock::now();
      sink = peak.loop(kSliceRounds);
      best[thread] = std::max(best[thread], kSliceRounds / seconds_since(slice));
    }
    (void)sink;
  });
  double rounds_a_second = 0;
  for (double rate : best) rounds_a_second += rate;
  return rounds_a_second * static_cast<double>(peak.macs_a_round);
}

}  // namespace

double probe_read_bandwidth(size_t bytes, int num_threads, double seconds) {
  check_arguments(num_threads, seconds);
  const size_t slice = bytes / sizeof(uint64_t) / num_threads / kWordsALine * kWordsALine;
  check(slice > 0, "bytes is ", bytes, "; expected at least 64 for each of ", num_threads,
        " threads");
  AlignedBuffer<uint64_t> buffer(slice * num_threads);
  double best = 0;
  bool more = true;
  auto begin = Clock::now();
  auto pass_start = begin;
  int pass = -1;  // the first barrier ends the touching of the pages
  std::barrier pass_end(num_threads, [&]() noexcept {
    const double pass_seconds = seconds_since(pass_start);
    if (pass >= 0) best = std::max(best, static_cast<double>(buffer.bytes()) / pass_seconds);
    if (pass < 0) begin = Clock::now();
    more = ++pass < 2 || seconds_since(begin) < seconds;
    pass_start = Clock::now();
  });
  run_threads(num_threads, [&](int thread) {
    uint64_t* words = buffer.data() + thread * slice;
    std::fill(words, words + slice, 1);
    volatile uint64_t sink = 0;
    for (pass_end.arrive_and_wait(); more; pass_end.arrive_and_wait()) {
      sink = read_once(words, slice);
    }
    (void)sink;
  });
  return best;
}

double probe_int8_peak(int num_threads, double seconds) {
  return measure_peak(int8_peak(), num_threads, seconds);
}

double probe_f32_peak(int num_threads, double seconds) {
  return measure_peak(f32_peak(), num_threads, seconds);
}

}  // namespace aperto
