// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"fmt"
	"strings"
)

// recordVerb: record NAME pod, which keeps what passes the pod's link.
func recordVerb(r *reader) action {
	name, pod := r.name("a recording"), r.oneOf("pod", pods()...)
	return func(_ context.Context, p *player) error {
		rec, err := p.suite.Stage.Record(pod)
		if err != nil {
			return err
		}
		p.records[name] = rec
		p.later(func() { _ = rec.Stop() })
		return nil
	}
}

// wireVerb: wire NAME has|lacks "text"
func wireVerb(r *reader) action {
	name, op, text := r.name("a recording"), r.oneOf("comparison", "has", "lacks"), r.text("a text")
	return func(_ context.Context, p *player) error {
		rec := p.records[name]
		if rec == nil {
			return fmt.Errorf("there is no recording %s", name)
		}
		if err := rec.Stop(); err != nil {
			return err
		}
		if rec.Contains([]byte(text)) != (op == "has") {
			return fmt.Errorf("the wire does not %s it", strings.TrimSuffix(op, "s"))
		}
		return nil
	}
}
