// Many tokens whose leaves are known: products with rows, and sums of rows.

// out[token, tree, j] = product of `vectors` [tokens, width] with the j-th row that the token meets in the tree.
// order [trees, tokens] puts tokens of the same leaf together; blockIdx.z and gridDim.z divide the rows among blocks.
extern "C" __global__ void __launch_bounds__(128, 4)
    dot_rows(const x_t* vectors, float* out, const index_t* order, const index_t* leaf, Rows rows, index_t tokens,
             index_t trees, index_t stages) {
  DYNAMIC_SHARED(memory);
  __shared__ index_t token[TILE];
  const int tree = blockIdx.y, width = static_cast<int>(rows.width), lane = threadIdx.x % 32;
  const index_t start = blockIdx.x * index_t(TILE);
  const int valid = static_cast<int>(tokens - start < TILE ? tokens - start : TILE);
  if (threadIdx.x < TILE) {
    const int m = threadIdx.x;
    token[m] = order[tree * tokens + start + (m < valid ? m : valid - 1)];  // missing ones repeat the last
  }
  __syncthreads();
  x_t* staged = reinterpret_cast<x_t*>(memory);
  if (stages) stage(vectors, token, width, staged);
  __syncthreads();

  const int group = threadIdx.x / 32 * GROUP;
  int end[GROUP];
  const x_t* input[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    end[g] = static_cast<int>(leaf[token[group + g] * trees + tree]);
    input[g] = stages ? staged + (group + g) * width : vectors + token[group + g] * width;
  }
  for (int j = blockIdx.z; j < rows.count; j += gridDim.z) {
    const row_t* row[GROUP];
    float sum[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) row[g] = row_at(rows, tree, row_of(rows, end[g], j));
    dot_group(row, input, width, sum);
    if (lane < GROUP && group + lane < valid) {
      const float value = affine(rows, tree, row_of(rows, pick(end, lane), j), pick(sum, lane));
      out[(token[group + lane] * trees + tree) * rows.count + j] = value;
    }
  }
}

// Tokens that a thread sums rows for, in as many numbers as registers allow.
constexpr int SUMS = VECTOR == 16 ? 4 : 8;
// Rows whose factors stand in shared memory at once.
constexpr int FACTORS = 64;

// sums[token] = (adds ? sums[token] : bias) + sum over j of a(factor[token, tree, j]) * gate[token, tree, j] * row j
// of one tree; also written to y [tokens, width], if given, in the type of tokens. `factor` and `gate` may be null.
extern "C" __global__ void __launch_bounds__(256, 2)
    sum_rows(float* sums, x_t* y, const index_t* order, const index_t* leaf, const float* factor, const float* gate,
             Rows rows, const void* bias, index_t bias_type, index_t tokens, index_t trees, index_t tree,
             index_t activation, index_t adds) {
  __shared__ int row[SUMS][FACTORS];
  __shared__ float weight[SUMS][FACTORS];
  const index_t start = blockIdx.x * index_t(SUMS);
  const int valid = static_cast<int>(tokens - start < SUMS ? tokens - start : SUMS), own = static_cast<int>(tree);
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR, count = static_cast<int>(rows.count);
  const bool inside = column < rows.width;

  float sum[SUMS][VECTOR];
#pragma unroll
  for (int g = 0; g < SUMS; ++g) {
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[g][e] = bias && inside ? scalar(bias, bias_type, column + e) : 0.0f;
    if (adds && inside && g < valid) load(sums + order[own * tokens + start + g] * rows.width + column, sum[g]);
  }
  for (int base = 0; base < count; base += FACTORS) {
    const int some = count - base < FACTORS ? count - base : FACTORS;
    __syncthreads();
    for (int i = threadIdx.x; i < SUMS * some; i += blockDim.x) {
      const int g = i / some, j = base + i % some;
      const index_t token = order[own * tokens + start + (g < valid ? g : valid - 1)];
      const index_t at = (token * trees + own) * count + j;
      const int found = row_of(rows, static_cast<int>(leaf[token * trees + own]), j);
      float value = factor ? activate(activation, factor[at]) : 1.0f;
      if (gate) value *= gate[at];
      row[g][i % some] = found;
      weight[g][i % some] = value * scale_of(rows, own, found);
    }
    __syncthreads();
    for (int j = 0; inside && j < some; ++j) {
      float w[VECTOR];
#pragma unroll
      for (int g = 0; g < SUMS; ++g) {
        if (g == 0 || row[g][j] != row[g > 0 ? g - 1 : 0][j]) load<true>(row_at(rows, own, row[g][j]) + column, w);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[g][e] = fmaf(weight[g][j], w[e], sum[g][e]);
      }
    }
  }
#pragma unroll
  for (int g = 0; g < SUMS; ++g) {
    if (inside && g < valid) {
      const index_t at = order[own * tokens + start + g] * rows.width + column;
      if (y) {
        store(y + at, sum[g]);
      } else {
        store(sums + at, sum[g]);
      }
    }
  }
}
