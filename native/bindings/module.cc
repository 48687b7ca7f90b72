// The module aperto._native. Only this folder knows Python.
#include "bindings/bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "The C++ core of aperto. Use it through aperto.native.";
  aperto::bind_kernels(m);
  aperto::bind_model(m);
  aperto::bind_probes(m);
}
