// AVX-512 with byte dot products, and the matrix unit (AMX) for many rows at once.
#define APERTO_KERNELS kAmxKernels
#define APERTO_KERNELS_NAME "amx"
#define APERTO_VNNI 1
#define APERTO_AMX 1
#include "kernels/x86_avx512_impl.h"
