// Takes the place of cuFFT's header: the part of the library that mixer/cuda/transforms.cu uses, on the CPU. Names and
// meaning are the library's (cuFFT API reference); the values of the enums are not.
//
// Transforms of fp32 rows, in place, worked out in double precision. Lengths have no factors but 2, 3 and 5. Where the
// library would fault the program ends: a work area that is missing, rows that are not a GPU's memory. As the library
// may, it leaves nothing in the work area that was there before.
#ifndef EMULATED_CUFFT_H
#define EMULATED_CUFFT_H

#include <cuda_runtime.h>

enum cufftResult {
    CUFFT_SUCCESS,
    CUFFT_INVALID_PLAN,
    CUFFT_ALLOC_FAILED,
    CUFFT_INVALID_VALUE,
    CUFFT_EXEC_FAILED,
    CUFFT_INVALID_SIZE,
    CUFFT_NOT_SUPPORTED
};
enum cufftType { CUFFT_R2C, CUFFT_C2R };
typedef int cufftHandle;
typedef float cufftReal;
typedef float2 cufftComplex;

cufftResult cufftCreate(cufftHandle *plan);
cufftResult cufftDestroy(cufftHandle plan);
cufftResult cufftSetAutoAllocation(cufftHandle plan, int automatic); // 0 alone
cufftResult cufftMakePlanMany64(cufftHandle plan, int rank, long long *n, long long *in_embed, long long in_stride,
                                long long in_distance, long long *out_embed, long long out_stride,
                                long long out_distance, cufftType type, long long batch, size_t *work_bytes);
cufftResult cufftSetStream(cufftHandle plan, cudaStream_t stream);
cufftResult cufftSetWorkArea(cufftHandle plan, void *work);
cufftResult cufftExecR2C(cufftHandle plan, cufftReal *in, cufftComplex *out);
cufftResult cufftExecC2R(cufftHandle plan, cufftComplex *in, cufftReal *out);

#endif
