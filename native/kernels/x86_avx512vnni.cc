// AVX-512 F, BW, VL, DQ with byte dot products.
#define APERTO_KERNELS kAvx512VnniKernels
#define APERTO_KERNELS_NAME "avx512vnni"
#define APERTO_VNNI 1
#include "kernels/x86_avx512_impl.h"
