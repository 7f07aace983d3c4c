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
