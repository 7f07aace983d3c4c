// Products of many tokens with the same rows, on tensor cores: the top levels of a tree, and the blocks at its leaves.

#if FFF_TENSOR
// A block of four warps multiplies so many tokens, 16 in each warp, with so many rows; DEPTH numbers of both stand in
// shared memory at once, and lines are set apart so that the lanes of a fragment read different banks.
constexpr int TENSOR_TOKENS = 64, TENSOR_ROWS = 64, DEPTH = 64, PITCH = DEPTH + 8;

struct alignas(16) TensorTiles {
  x_t tokens[TENSOR_TOKENS * PITCH];
  x_t rows[TENSOR_ROWS * PITCH];
};

// products[token][row]
typedef float Products[TENSOR_TOKENS][TENSOR_ROWS + 1];

// Eight numbers in the tokens' type, which holds int8 exactly; zeros where there is no row.
template <typename T>
__device__ __forceinline__ void copy_eight(const T* from, bool present, x_t* to) {
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = 0.0f;
  if (present) load<true>(from, values);
  store(to, values);
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], half16) {
  multiply_half(sum, a, b);
}
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16) {
  multiply_bfloat(sum, a, b);
}

__device__ __forceinline__ unsigned two(const x_t* numbers) { return *reinterpret_cast<const unsigned*>(numbers); }

// Multiplies the tokens [first, last) of a tile with `count` rows, which stand one after another. The products of other
// tokens are left undefined.
__device__ __forceinline__ void multiply_tiles(const x_t* vectors, const index_t (&token)[TENSOR_TOKENS], int first,
                                               int last, const row_t* rows, int count, int width, TensorTiles& tiles,
                                               Products& products) {
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16;
  const bool busy = own < last && own + 16 > first;
  float sum[TENSOR_ROWS / 8][4];
#pragma unroll
  for (int n = 0; n < TENSOR_ROWS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
  }
  for (int base = 0; base < width; base += DEPTH) {
    for (int i = threadIdx.x; i < TENSOR_TOKENS * DEPTH / 8; i += blockDim.x) {
      const int line = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8, at = base + column;
      if (line >= first && line < last) {
        copy_eight(vectors + token[line] * width + at, at < width, tiles.tokens + line * PITCH + column);
      }
      copy_eight(rows + index_t(line) * width + at, at < width && line < count, tiles.rows + line * PITCH + column);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; busy && k < DEPTH; k += 16) {
      const int column = k + lane % 4 * 2;
      const x_t* mine = tiles.tokens + (own + lane / 4) * PITCH + column;
      const unsigned a[4] = {two(mine), two(mine + 8 * PITCH), two(mine + 8), two(mine + 8 * PITCH + 8)};
#pragma unroll
      for (int n = 0; n < TENSOR_ROWS / 8; ++n) {
        const x_t* row = tiles.rows + (n * 8 + lane / 4) * PITCH + column;
        const unsigned b[2] = {two(row), two(row + 8)};
        multiply(sum[n], a, b, x_t());
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < TENSOR_ROWS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) products[own + lane / 4 + i / 2 * 8][n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
  }
  __syncthreads();
}

// The first `levels` levels (at most 6, so 63 nodes) of one tree as one dense product, of which each token keeps its
// own path's.
extern "C" __global__ void __launch_bounds__(128, 4)
    top_levels(const x_t* x, float* logits, index_t* leaf, Rows in, index_t tokens, index_t trees, index_t levels) {
  __shared__ TensorTiles tiles;
  __shared__ Products products;
  __shared__ index_t token[TENSOR_TOKENS];
  const int tree = blockIdx.y, me = threadIdx.x, nodes = (1 << levels) - 1;
  const index_t start = blockIdx.x * index_t(TENSOR_TOKENS);
  const int valid = static_cast<int>(tokens - start < TENSOR_TOKENS ? tokens - start : TENSOR_TOKENS);
  if (me < valid) token[me] = start + me;
  __syncthreads();
  multiply_tiles(x, token, 0, valid, row_at(in, tree, 0), nodes, static_cast<int>(in.width), tiles, products);
  if (me < valid) {
    const index_t at = token[me] * trees + tree;
    int path = 0;
    for (int k = 0; k < levels; ++k) {
      const int node = (1 << k) - 1 + path;
      const float s = affine(in, tree, node, products[me][node]);
      logits[at * in.count + k] = s;
      path = 2 * path + (s > 0.0f);
    }
    leaf[at] = path;
  }
}

// `dot_rows` for the rows of leaves, 64 of them in a block: a grouped product, tokens of a leaf being neighbours in
// order [trees, tokens].
extern "C" __global__ void __launch_bounds__(128, 4)
    dot_leaves(const x_t* vectors, float* out, const index_t* order, const index_t* leaf, Rows rows, index_t tokens,
               index_t trees) {
  __shared__ TensorTiles tiles;
  __shared__ Products products;
  __shared__ index_t token[TENSOR_TOKENS];
  __shared__ int end[TENSOR_TOKENS];
  const int tree = blockIdx.y, me = threadIdx.x, count = static_cast<int>(rows.count), base = blockIdx.z * TENSOR_ROWS;
  const int some = count - base < TENSOR_ROWS ? count - base : TENSOR_ROWS;
  const index_t start = blockIdx.x * index_t(TENSOR_TOKENS);
  const int valid = static_cast<int>(tokens - start < TENSOR_TOKENS ? tokens - start : TENSOR_TOKENS);
  if (me < valid) {
    token[me] = order[tree * tokens + start + me];
    end[me] = static_cast<int>(leaf[token[me] * trees + tree]);
  }
  __syncthreads();
  for (int first = 0, last = 0; first < valid; first = last) {
    while (last < valid && end[last] == end[first]) ++last;
    const int row = end[first] * count + base;
    multiply_tiles(vectors, token, first, last, row_at(rows, tree, row), some, static_cast<int>(rows.width), tiles,
                   products);
    for (int i = me; i < (last - first) * some; i += blockDim.x) {
      const int m = first + i / some, j = i % some;
      out[(token[m] * trees + tree) * count + base + j] = affine(rows, tree, row + j, products[m][j]);
    }
    __syncthreads();
  }
}
#endif
