#include <nanobind/nanobind.h>

#include "base/probes.h"

namespace nb = nanobind;

namespace aperto {

void bind_probes(nb::module_& m) {
  m.def("probe_read_bandwidth", &probe_read_bandwidth, nb::arg("bytes"), nb::arg("threads"),
        nb::arg("seconds"), nb::call_guard<nb::gil_scoped_release>(),
        "Best streaming read of all threads together over `bytes` of memory, in bytes/s.");
  m.def("probe_int8_peak", &probe_int8_peak, nb::arg("threads"), nb::arg("seconds"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Register-only 8-bit multiply-adds a second, all threads together.");
  m.def("probe_f32_peak", &probe_f32_peak, nb::arg("threads"), nb::arg("seconds"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Register-only float32 fused multiply-adds a second, all threads together.");
}

}  // namespace aperto
