// What this machine can reach: the limits that measured speeds are compared with.
#pragma once

#include <cstddef>

namespace aperto {

// Best pass of all threads streaming together over `bytes` of huge-page memory, in bytes/s.
// `bytes` should be several times the last-level cache; at least two passes are made.
double probe_read_bandwidth(size_t bytes, int num_threads, double seconds);

// Multiply-adds of 8-bit integers a second from registers alone, summed over the threads' best
// slices: the widest dot-product loop this CPU has (VNNI, AVX2, plain).
double probe_int8_peak(int num_threads, double seconds);

// The same for 32-bit floats and fused multiply-add.
double probe_f32_peak(int num_threads, double seconds);

}  // namespace aperto
