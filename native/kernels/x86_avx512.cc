// AVX-512 F, BW, VL, DQ without byte dot products.
#define APERTO_KERNELS kAvx512Kernels
#define APERTO_KERNELS_NAME "avx512"
#define APERTO_VNNI 0
#include "kernels/x86_avx512_impl.h"
