// Whether these kernels can be launched here. Creates no context and takes no memory on a device.
#include <cuda_runtime.h>

#include <cstdio>

#include "kernels.h"

namespace ulam::cuda {
namespace {

constexpr int kLeastMajor = 8;  // the oldest architecture in the build

int usable_devices(int devices) {
  int usable = 0;
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) continue;
    usable += major >= kLeastMajor;
  }
  return usable;
}

}  // namespace

int device_count() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  cudaGetLastError();  // clears the error: a failure here is an answer, and must not be reported by the next launch
  return usable_devices(devices);
}

const char* unavailable_reason() {
  static thread_local char text[256];
  int driver = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "no NVIDIA driver is installed on this machine";
  const cudaError_t error = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    std::snprintf(text, sizeof text, "the NVIDIA driver supports CUDA %d.%d, this build needs %d.%d or newer",
                  driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return text;
  }
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (devices == 0) return "the NVIDIA driver sees no device";
  if (usable_devices(devices) > 0) return nullptr;
  return "no device has compute capability 8.0 or newer";
}

}  // namespace ulam::cuda
