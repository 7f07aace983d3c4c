// Rows of weights, how a path finds its own, and products of rows with tokens.

// One weight of all trees. `Rows` in Python fills it; every field has 8 bytes.
struct Rows {
  const row_t* weight;  // [trees, per_tree, width]; null where the layer has no such weight
  const float* scale;   // [trees, per_tree]: what int8 rows are multiplied by; null for other types
  const void* bias;     // [trees, per_tree] or null
  index_t bias_type;
  index_t width;
  index_t per_tree;
  index_t branches;  // rows per node, 1 or 2; 0 for the rows of leaves
  index_t count;     // rows that one token meets: a path's levels, or the rows of one leaf
};

// The j-th row that a token arriving at `leaf` meets.
__device__ __forceinline__ int row_of(const Rows& rows, int leaf, int j) {
  const int levels = static_cast<int>(rows.count);
  if (rows.branches == 0) return leaf * levels + j;
  if (rows.branches == 1) return (1 << j) - 1 + (leaf >> (levels - j));
  return 2 * ((1 << j) - 1) + (leaf >> (levels - 1 - j));
}

__device__ __forceinline__ const row_t* row_at(const Rows& rows, int tree, int row) {
  return rows.weight + (tree * rows.per_tree + row) * rows.width;
}

__device__ __forceinline__ float scale_of(const Rows& rows, int tree, int row) {
  return rows.scale ? rows.scale[tree * rows.per_tree + row] : 1.0f;
}

// A neuron's value from the product of its stored row with a token.
__device__ __forceinline__ float affine(const Rows& rows, int tree, int row, float product) {
  const float bias = rows.bias ? scalar(rows.bias, rows.bias_type, tree * rows.per_tree + row) : 0.0f;
  return product * scale_of(rows, tree, row) + bias;
}

// Sum over a warp; every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The part of one product that belongs to thread `place` of `threads`.
__device__ __forceinline__ float dot_part(const row_t* row, const x_t* x, int width, int place, int threads) {
  float sum = 0.0f;
#pragma unroll 2
  for (int i = place * VECTOR; i < width; i += threads * VECTOR) {
    float w[VECTOR], v[VECTOR];
    load<true>(row + i, w);
    load<true>(x + i, v);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum = fmaf(w[e], v[e], sum);
  }
  return sum;
}

// Tokens that a warp multiplies at once.
constexpr int GROUP = 4;

// values[i] from registers, which have no addresses.
template <typename T>
__device__ __forceinline__ T pick(const T (&values)[GROUP], int i) {
  T value = values[0];
#pragma unroll
  for (int g = 1; g < GROUP; ++g) value = i == g ? values[g] : value;
  return value;
}

// A warp's products of one row with one token each. Neighbours that meet the same row share one load of it.
__device__ __forceinline__ void dot_group(const row_t* const (&row)[GROUP], const x_t* const (&x)[GROUP], int width,
                                          float (&sum)[GROUP]) {
#pragma unroll
  for (int g = 0; g < GROUP; ++g) sum[g] = 0.0f;
  for (int i = threadIdx.x % 32 * VECTOR; i < width; i += 32 * VECTOR) {
    float w[VECTOR], v[VECTOR];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      if (g == 0 || row[g] != row[g > 0 ? g - 1 : 0]) load<true>(row[g] + i, w);
      load(x[g] + i, v);
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) sum[g] = fmaf(w[e], v[e], sum[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < GROUP; ++g) sum[g] = warp_sum(sum[g]);
}

// Tokens of one block where warps multiply groups: four warps.
constexpr int TILE = 4 * GROUP;

// Copy the tokens of a tile to shared memory, whose rows then stand one after another.
__device__ __forceinline__ void stage(const x_t* x, const index_t (&tokens)[TILE], int width, x_t* staged) {
  constexpr int LARGEST = 16 / sizeof(x_t), PACK = VECTOR < LARGEST ? VECTOR : LARGEST;
  struct alignas(PACK * sizeof(x_t)) Pack {
    x_t values[PACK];
  };
  const int packs = width / PACK;
  for (int i = threadIdx.x; i < TILE * packs; i += blockDim.x) {
    const x_t* from = x + tokens[i / packs] * width + i % packs * PACK;
    reinterpret_cast<Pack*>(staged)[i] = *reinterpret_cast<const Pack*>(from);
  }
}
