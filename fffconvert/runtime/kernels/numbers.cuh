// Storage types, and the loads and stores of several numbers at once.
//
// Compiled with FFF_X (type of tokens), FFF_ROW (type of rows), FFF_VECTOR (numbers that a thread takes at once:
// 16 bytes of a row, or 1 where widths or addresses do not allow it) and FFF_TENSOR (tensor cores are used).

typedef long long index_t;
typedef signed char int8;

struct half16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

typedef FFF_X x_t;
typedef FFF_ROW row_t;
constexpr int VECTOR = FFF_VECTOR;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(half16 value) { return half_to_float(value.bits); }
__device__ __forceinline__ float to_float(bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ __forceinline__ float to_float(int8 value) { return value; }

__device__ __forceinline__ void from_float(float value, float& out) { out = value; }
__device__ __forceinline__ void from_float(float value, half16& out) { out.bits = float_to_half(value); }
__device__ __forceinline__ void from_float(float value, bfloat16& out) {
  const unsigned bits = __float_as_uint(value);
  const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  out.bits = static_cast<unsigned short>(value == value ? rounded >> 16 : 0x7fc0u);
}

// The number at place i of the words that hold several.
template <typename T>
struct Unpack;
template <>
struct Unpack<float> {
  __device__ static __forceinline__ float at(const unsigned* words, int i) { return __uint_as_float(words[i]); }
};
template <>
struct Unpack<half16> {
  __device__ static __forceinline__ float at(const unsigned* words, int i) {
    return half_to_float(static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2))));
  }
};
template <>
struct Unpack<bfloat16> {
  __device__ static __forceinline__ float at(const unsigned* words, int i) {
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
};
template <>
struct Unpack<int8> {
  __device__ static __forceinline__ float at(const unsigned* words, int i) {
    return static_cast<int8>(words[i / 4] >> (8 * (i % 4)));
  }
};

template <int WORDS, bool CONSTANT>
__device__ __forceinline__ void load_words(const void* from, unsigned (&words)[WORDS]) {
  if constexpr (WORDS % 4 == 0) {
#pragma unroll
    for (int i = 0; i < WORDS / 4; ++i) {
      const uint4* place = static_cast<const uint4*>(from) + i;
      const uint4 part = CONSTANT ? __ldg(place) : *place;
      words[4 * i] = part.x, words[4 * i + 1] = part.y, words[4 * i + 2] = part.z, words[4 * i + 3] = part.w;
    }
  } else if constexpr (WORDS == 2) {
    const uint2* place = static_cast<const uint2*>(from);
    const uint2 part = CONSTANT ? __ldg(place) : *place;
    words[0] = part.x, words[1] = part.y;
  } else {
    static_assert(WORDS == 1, "a thread takes 4, 8 or whole times 16 bytes");
    words[0] = *static_cast<const unsigned*>(from);
  }
}

// N neighbouring numbers as float. CONSTANT: in global memory, and nothing writes there while the kernel runs.
template <bool CONSTANT = false, int N, typename T>
__device__ __forceinline__ void load(const T* from, float (&out)[N]) {
  if constexpr (N == 1) {
    out[0] = to_float(*from);
  } else {
    unsigned words[N * sizeof(T) / 4];
    load_words<N * sizeof(T) / 4, CONSTANT>(from, words);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = Unpack<T>::at(words, i);
  }
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const float (&values)[N]) {
  struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T values[N];
  } pack;
#pragma unroll
  for (int i = 0; i < N; ++i) from_float(values[i], pack.values[i]);
  *reinterpret_cast<Pack*>(to) = pack;
}

// A single number of a vector whose type is known only at run time: biases may differ in type from the rows.
enum { FLOAT = 0, HALF = 1, BFLOAT = 2 };

__device__ __forceinline__ float scalar(const void* from, index_t type, index_t i) {
  if (type == HALF) return to_float(static_cast<const half16*>(from)[i]);
  if (type == BFLOAT) return to_float(static_cast<const bfloat16*>(from)[i]);
  return static_cast<const float*>(from)[i];
}
