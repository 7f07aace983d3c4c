// Many tokens: paths. Tokens go in tiles of neighbours in an order that puts tokens of one node together.

// Walk the levels [first, last) of one tree with a tile of tokens, held in shared memory if `stages`.
// leaf [tokens, trees] holds the place in level `first` before and in level `last` afterwards. Tiles are cut from
// order [trees, tokens] (null: as tokens come), and kept sorted by place while they go down.
extern "C" __global__ void __launch_bounds__(128, 4)
    walk_tiles(const x_t* x, float* logits, index_t* leaf, const index_t* order, Rows in, index_t tokens,
               index_t trees, index_t first, index_t last, index_t stages) {
  DYNAMIC_SHARED(memory);
  __shared__ index_t token[TILE];
  __shared__ int path[TILE], sorted[TILE];
  const int tree = blockIdx.y, width = static_cast<int>(in.width), lane = threadIdx.x % 32, me = threadIdx.x;
  const index_t start = blockIdx.x * index_t(TILE);
  const int valid = static_cast<int>(tokens - start < TILE ? tokens - start : TILE);

  if (me < TILE) {
    const index_t position = start + (me < valid ? me : valid - 1);  // missing ones repeat the last
    token[me] = order ? order[tree * tokens + position] : position;
    path[me] = first > 0 ? static_cast<int>(leaf[token[me] * trees + tree]) : 0;
    sorted[me] = me;
  }
  __syncthreads();
  x_t* staged = reinterpret_cast<x_t*>(memory);
  if (stages) stage(x, token, width, staged);
  __syncthreads();

  const int group = me / 32 * GROUP;
  for (int k = static_cast<int>(first); k < last; ++k) {
    const row_t* row[GROUP];
    const x_t* input[GROUP];
    float sum[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      const int slot = sorted[group + g];
      row[g] = row_at(in, tree, (1 << k) - 1 + path[slot]);
      input[g] = stages ? staged + slot * width : x + token[slot] * width;
    }
    dot_group(row, input, width, sum);
    if (lane < GROUP) {
      const int slot = sorted[group + lane];
      const float s = affine(in, tree, (1 << k) - 1 + path[slot], pick(sum, lane));
      if (slot < valid) logits[(token[slot] * trees + tree) * in.count + k] = s;
      path[slot] = 2 * path[slot] + (s > 0.0f);
    }
    __syncthreads();
    if (me < TILE) {
      int rank = 0;
      for (int other = 0; other < TILE; ++other) {
        rank += path[other] < path[me] || (path[other] == path[me] && other < me);
      }
      sorted[rank] = me;
    }
    __syncthreads();
  }
  if (me < valid) leaf[token[me] * trees + tree] = path[me];
}

#if FFF_TENSOR
constexpr int TOP_LEVELS = 6, TOP_TOKENS = 64, TOP_ROWS = 64, DEPTH = 64, PITCH = DEPTH + 8;

// Eight numbers of a matrix in the tokens' type, zeros where there is none.
template <typename T>
__device__ __forceinline__ void tensor_tile(const T* from, bool present, x_t* to) {
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

// The first `levels` levels (at most 6, so 63 nodes) of one tree as one dense product on tensor cores, of which each
// token keeps its own path's. A block takes 64 tokens, each of its warps 16 of them with all nodes.
extern "C" __global__ void __launch_bounds__(128, 4)
    top_levels(const x_t* x, float* logits, index_t* leaf, Rows in, index_t tokens, index_t trees, index_t levels) {
  __shared__ __align__(16) x_t a_tile[TOP_TOKENS * PITCH];
  __shared__ __align__(16) x_t b_tile[TOP_ROWS * PITCH];
  __shared__ float products[TOP_TOKENS][TOP_ROWS + 1];
  const int tree = blockIdx.y, width = static_cast<int>(in.width), lane = threadIdx.x % 32;
  const int nodes = (1 << levels) - 1, warp = threadIdx.x / 32;
  const index_t start = blockIdx.x * index_t(TOP_TOKENS);

  float sum[TOP_ROWS / 8][4];
#pragma unroll
  for (int n = 0; n < TOP_ROWS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
  }
  for (int base = 0; base < width; base += DEPTH) {
    for (int i = threadIdx.x; i < TOP_TOKENS * DEPTH / 8; i += blockDim.x) {
      const int line = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8, at = base + column;
      const bool inside = at < width;
      tensor_tile(x + (start + line) * width + at, inside && start + line < tokens, a_tile + line * PITCH + column);
      tensor_tile(row_at(in, tree, line) + at, inside && line < nodes, b_tile + line * PITCH + column);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      const int column = k + lane % 4 * 2;
      const x_t* own = a_tile + (warp * 16 + lane / 4) * PITCH + column;
      const unsigned a[4] = {*reinterpret_cast<const unsigned*>(own), *reinterpret_cast<const unsigned*>(own + 8 * PITCH),
                             *reinterpret_cast<const unsigned*>(own + 8),
                             *reinterpret_cast<const unsigned*>(own + 8 * PITCH + 8)};
#pragma unroll
      for (int n = 0; n < TOP_ROWS / 8; ++n) {
        const x_t* node = b_tile + (n * 8 + lane / 4) * PITCH + column;
        const unsigned b[2] = {*reinterpret_cast<const unsigned*>(node), *reinterpret_cast<const unsigned*>(node + 8)};
        multiply(sum[n], a, b, x_t());
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < TOP_ROWS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      products[warp * 16 + lane / 4 + i / 2 * 8][n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
    }
  }
  __syncthreads();
  const index_t token = start + threadIdx.x;
  if (threadIdx.x < TOP_TOKENS && token < tokens) {
    int path = 0;
    for (int k = 0; k < levels; ++k) {
      const int node = (1 << k) - 1 + path;
      const float s = affine(in, tree, node, products[threadIdx.x][node]);
      logits[(token * trees + tree) * in.count + k] = s;
      path = 2 * path + (s > 0.0f);
    }
    leaf[token * trees + tree] = path;
  }
}
#endif
