// Gradients of rows: sums over the tokens that visited each, always in the same order, so runs repeat to the bit.
//
// Tokens are sorted by leaf, so those of one node stand together at every level. A block takes CHUNK of them and sums
// each run of equal rows; a run that lies within its chunk is a whole gradient. Runs that cross the borders of
// chunks leave their parts behind, which `join_runs` adds up.

constexpr int CHUNK = 128;

// What runs that cross borders leave of the j-th rows in one chunk: [count, chunks, 2, width + 1] numbers; the run
// that came from the chunk before, then the one that goes on into the next; the last number is of the bias.
__device__ __forceinline__ float* part_at(float* parts, index_t j, index_t chunks, index_t chunk, int side,
                                          index_t width) {
  return parts + (((j * chunks + chunk) * 2 + side) * (width + 1));
}

template <typename T>
__device__ __forceinline__ void write_row(T* row, float* bias, const float (&sum)[VECTOR], float total) {
  store(row, sum);
  if (bias) *bias = total;
}

// grad [per_tree, width] and grad_bias [per_tree] (or null) of one tree, both given zeros.
// vectors [tokens, width]; factor [tokens, trees, count] or null for ones.
extern "C" __global__ void __launch_bounds__(256, 2)
    sum_runs(const x_t* vectors, const float* factor, const index_t* order, const index_t* leaf, row_t* grad,
             float* grad_bias, float* parts, Rows rows, index_t tokens, index_t trees, index_t tree) {
  __shared__ index_t token[CHUNK];
  __shared__ float weight[CHUNK];
  __shared__ int row[CHUNK + 2];  // with the neighbours on both sides, -1 at the ends
  const int own = static_cast<int>(tree), j = blockIdx.y, width = static_cast<int>(rows.width);
  const index_t chunk = blockIdx.x, start = chunk * CHUNK;
  const int valid = static_cast<int>(tokens - start < CHUNK ? tokens - start : CHUNK);
  for (int i = threadIdx.x; i < valid + 2; i += blockDim.x) {
    const index_t position = start + i - 1;
    const bool exists = position >= 0 && position < tokens;
    const index_t at = exists ? order[own * tokens + position] : 0;
    row[i] = exists ? row_of(rows, static_cast<int>(leaf[at * trees + own]), j) : -1;
    if (i > 0 && i <= valid) {
      token[i - 1] = at;
      weight[i - 1] = factor ? factor[(at * trees + own) * rows.count + j] : 1.0f;
    }
  }
  __syncthreads();

  const int column = (blockIdx.z * blockDim.x + threadIdx.x) * VECTOR;
  if (column >= width) return;
  float sum[VECTOR], total = 0.0f;
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) sum[e] = 0.0f;
  bool begins = row[0] != row[1];
  for (int i = 0; i < valid; ++i) {
    float v[VECTOR];
    load<true>(vectors + token[i] * width + column, v);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] = fmaf(weight[i], v[e], sum[e]);
    total += weight[i];
    if (row[i + 2] == row[i + 1] && i + 1 < valid) continue;
    const bool ends = row[i + 2] != row[i + 1];
    if (begins && ends) {
      float* bias = grad_bias && column == 0 ? grad_bias + row[i + 1] : nullptr;
      write_row(grad + index_t(row[i + 1]) * width + column, bias, sum, total);
    } else {
      float* part = part_at(parts, j, gridDim.x, chunk, begins, width);
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) part[column + e] = sum[e];
      if (column == 0) part[width] = total;
    }
    begins = true, total = 0.0f;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] = 0.0f;
  }
}

// Finish the run that begins in chunk blockIdx.x and goes on into the next, if there is one.
extern "C" __global__ void __launch_bounds__(256, 2)
    join_runs(const index_t* order, const index_t* leaf, row_t* grad, float* grad_bias, float* parts, Rows rows,
              index_t tokens, index_t trees, index_t tree) {
  const int own = static_cast<int>(tree), j = blockIdx.y, width = static_cast<int>(rows.width);
  const index_t chunks = gridDim.x + 1, chunk = blockIdx.x;  // the last chunk goes on nowhere
  const int column = (blockIdx.z * blockDim.x + threadIdx.x) * VECTOR;
  if (column >= width) return;
  auto row_in = [&](index_t position) {
    return row_of(rows, static_cast<int>(leaf[order[own * tokens + position] * trees + own]), j);
  };
  const index_t start = chunk * CHUNK, next = start + CHUNK;
  const int row = row_in(next - 1);
  if (row_in(next) != row || (start > 0 && row_in(start - 1) == row)) return;

  float sum[VECTOR], total = 0.0f;
  const float* part = part_at(parts, j, chunks, chunk, 1, width);
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) sum[e] = part[column + e];
  total = part[width];
  for (index_t other = chunk + 1; other < chunks && row_in(other * CHUNK) == row; ++other) {
    part = part_at(parts, j, chunks, other, 0, width);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] += part[column + e];
    total += part[width];
  }
  float* bias = grad_bias && column == 0 ? grad_bias + row : nullptr;
  write_row(grad + index_t(row) * width + column, bias, sum, total);
}
