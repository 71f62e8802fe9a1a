// SPDX-License-Identifier: Apache-2.0

package xds

import "github.com/ztunnel-go/ztunnel/internal/mesh"

// applyBatch is how many changes of a long list are one step. Readers wait for
// none, so its size is the writer's business: a small one copies the same
// parts of the indexes again and again, a large one keeps more at a time in
// both forms, as message and as value.
const applyBatch = 4096

// inBatches applies a list in such steps.
func inBatches[T any](store *mesh.Store, items []T, apply func(*mesh.Update, T)) {
	for len(items) > 0 {
		n := min(applyBatch, len(items))
		store.Apply(func(u *mesh.Update) {
			for _, item := range items[:n] {
				apply(u, item)
			}
		})
		items = items[n:]
	}
}
