// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"log/slog"

	"github.com/ztunnel-go/ztunnel/dataplane/rbac"
)

// tell logs what policy said of a new connection (contract 5.5).
func (t *Table) tell(in *Inbound, d rbac.Decision) {
	ctx := context.Background()
	for _, key := range d.Unknown {
		t.decisions.Warn("skipping unknown policy " + key)
	}
	if !t.decisions.Enabled(ctx, t.level) {
		return
	}
	conn := slog.Any("connection", in)
	for _, n := range d.DryRun {
		t.decisions.LogAttrs(ctx, t.level, n.Message, policyAttrs(conn, n.Policy)...)
	}
	t.decisions.LogAttrs(ctx, t.level, d.Reason, policyAttrs(conn, d.Policy)...)
}

func policyAttrs(conn slog.Attr, policy string) []slog.Attr {
	if policy == "" {
		return []slog.Attr{conn}
	}
	return []slog.Attr{slog.String("policy", policy), conn}
}
