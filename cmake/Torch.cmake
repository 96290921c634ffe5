# The C++ libraries of the torch wheel as two imported targets. `find_package(Torch)` is not used: on a CUDA wheel it needs a CUDA toolkit even to
# build for the CPU, and it would link the CUDA libraries (a gigabyte to map at each start) into programs that never touch a GPU.
#
# Input: CONCLAVE_PYTHON, a Python that has torch installed (default: .venv/bin/python3 of this checkout, then python3).
set(CONCLAVE_TORCH_VERSION "2.11.0")

if(NOT CONCLAVE_PYTHON)
  if(SKBUILD AND Python_EXECUTABLE)  # a wheel is built for the Python that asks for it
    set(CONCLAVE_PYTHON ${Python_EXECUTABLE} CACHE FILEPATH "Python that has torch installed")
  elseif(EXISTS ${CMAKE_SOURCE_DIR}/.venv/bin/python3)
    set(CONCLAVE_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python3 CACHE FILEPATH "Python that has torch installed")
  else()
    find_program(CONCLAVE_PYTHON python3 REQUIRED)
  endif()
endif()

execute_process(
  COMMAND ${CONCLAVE_PYTHON} -c
          "import importlib.util as u, importlib.metadata as m; print(m.version('torch') + ';' + u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_answer OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_status)
if(NOT torch_status EQUAL 0)
  message(FATAL_ERROR "torch was not found by ${CONCLAVE_PYTHON}. Run ./dev setup, or give -DCONCLAVE_PYTHON=<python with torch ${CONCLAVE_TORCH_VERSION}>.")
endif()
list(GET torch_answer 0 torch_version)
list(GET torch_answer 1 TORCH_DIR)
if(NOT torch_version MATCHES "^${CONCLAVE_TORCH_VERSION}")
  message(FATAL_ERROR "Conclave is built against torch ${CONCLAVE_TORCH_VERSION}, but ${CONCLAVE_PYTHON} has ${torch_version}. Run ./dev setup.")
endif()
message(STATUS "torch ${torch_version}: ${TORCH_DIR}")

add_library(torch_cpu INTERFACE)
# The wheel carries a newer fmt than the system's spdlog was built with: the system's goes first, and is the only one linked.
find_path(SYSTEM_FMT_INCLUDE fmt/core.h REQUIRED)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/include/system_fmt)
file(CREATE_LINK ${SYSTEM_FMT_INCLUDE}/fmt ${CMAKE_BINARY_DIR}/include/system_fmt/fmt SYMBOLIC)
target_include_directories(torch_cpu SYSTEM INTERFACE ${CMAKE_BINARY_DIR}/include/system_fmt ${TORCH_DIR}/include ${TORCH_DIR}/include/torch/csrc/api/include)
target_compile_definitions(torch_cpu INTERFACE USE_DISTRIBUTED USE_C10D_GLOO)
target_link_libraries(torch_cpu INTERFACE ${TORCH_DIR}/lib/libtorch_cpu.so ${TORCH_DIR}/lib/libc10.so)
# at::parallel_for is a template over OpenMP: compiled without it, it is a plain loop. The runtime is the one in the wheel, not a second one.
target_compile_options(torch_cpu INTERFACE -fopenmp)
target_link_libraries(torch_cpu INTERFACE ${TORCH_DIR}/lib/libgomp.so.1)
set(CMAKE_BUILD_RPATH ${TORCH_DIR}/lib)
# Installed in conclave/lib and conclave/bin of site-packages, torch is usually a neighbour; else the console script names its libraries.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../torch/lib")

# The CUDA half is a plug-in of its own (libconclave_cuda.so), loaded when a job asks for a GPU.
set(CONCLAVE_HAVE_CUDA OFF)
if(CONCLAVE_CUDA)
  find_program(CONCLAVE_NVCC nvcc)
  if(CONCLAVE_NVCC AND EXISTS ${TORCH_DIR}/lib/libtorch_cuda.so)
    set(CONCLAVE_HAVE_CUDA ON)
    find_package(CUDAToolkit REQUIRED)
    cmake_path(GET TORCH_DIR PARENT_PATH site_packages)
    add_library(torch_cuda INTERFACE)
    target_link_libraries(torch_cuda INTERFACE torch_cpu -Wl,--no-as-needed ${TORCH_DIR}/lib/libtorch_cuda.so
                          ${TORCH_DIR}/lib/libc10_cuda.so -Wl,--as-needed)
    target_include_directories(torch_cuda SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS} ${site_packages}/nvidia/nccl/include)
    target_compile_definitions(torch_cuda INTERFACE USE_C10D_NCCL)
  endif()
endif()
message(STATUS "CUDA and NCCL parts: ${CONCLAVE_HAVE_CUDA}")
