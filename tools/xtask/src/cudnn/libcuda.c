/* A driver without a device: enough for cuDNN to load its libraries and to compile kernels for a
 * device that is described to it. What would ask a device answers CUDA_ERROR_NO_DEVICE; what takes
 * compiled code answers that it was taken. Nothing can run. */
#define NO_DEVICE(name) int name() { return 100; }
#define TAKEN(name) int name() { return 0; }
#define GIVES(name, type, value) int name(type* to) { *to = (type)(value); return 0; }

NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetCount)
NO_DEVICE(cuDriverGetVersion)
NO_DEVICE(cuInit)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLibraryLoadFromFile)
NO_DEVICE(cuLinkAddData)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkCreate)
NO_DEVICE(cuLinkDestroy)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuTensorMapEncodeIm2col)
NO_DEVICE(cuTensorMapEncodeTiled)

TAKEN(cuFuncSetAttribute)
TAKEN(cuKernelSetAttribute)
TAKEN(cuLibraryUnload)
TAKEN(cuModuleUnload)

GIVES(cuFuncGetAttribute, int, 0)
GIVES(cuKernelGetAttribute, int, 0)
GIVES(cuKernelGetFunction, void*, 24)
GIVES(cuLibraryGetKernel, void*, 16)
GIVES(cuLibraryLoadData, void*, 8)
GIVES(cuModuleGetFunction, void*, 24)
GIVES(cuModuleLoadData, void*, 8)
GIVES(cuOccupancyMaxPotentialClusterSize, int, 8)

int cuGetErrorName(int error, const char** name) { *name = "no name"; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "no text"; return 0; }
