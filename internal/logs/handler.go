// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const (
	root   = "ztunnel" // the target of lines that have none of their own
	prefix = root + "::"
)

// Target returns a logger whose lines belong to target, a module path such as
// proxy::inbound beneath ztunnel, where it replaces the target that logger
// had. The targets access and dns stand by themselves, and an access line has
// no spans (contract 13.5, 14.4). A logger that is not one of ours comes back
// as it is.
func Target(logger *slog.Logger, target string) *slog.Logger {
	h, ok := logger.Handler().(*handler)
	if !ok {
		return logger
	}
	n := *h
	switch {
	case target == "access":
		n.target, n.spans = target, nil
	case target == "dns", target == root, strings.HasPrefix(target, prefix):
		n.target = target
	default:
		n.target = prefix + target
	}
	return slog.New(&n)
}

// Span returns a logger whose lines say that they are part of something that
// name and attrs describe, such as proxy{wl=ns/pod}. Spans nest: those of
// logger stand before. With a logger that is not one of ours the attributes
// become a group.
func Span(logger *slog.Logger, name string, attrs ...slog.Attr) *slog.Logger {
	h, ok := logger.Handler().(*handler)
	if !ok {
		return slog.New(logger.Handler().WithAttrs([]slog.Attr{{Key: name, Value: slog.GroupValue(attrs...)}}))
	}
	n := *h
	n.spans = append(slices.Clip(h.spans), span{name, flatten(nil, "", attrs)})
	return slog.New(&n)
}

// Bare is a text that stands in a plain line without quotes, as addresses and
// the values of spans do (contract 14.2): slog.Any("wl", logs.Bare(name)).
type Bare string

// String implements [fmt.Stringer], which is what keeps the quotes away.
func (b Bare) String() string { return string(b) }

// A span is a name and what is known of it.
type span struct {
	name   string
	fields []field
}

// A field is an attribute whose groups have become part of its name and whose
// value has been resolved.
type field struct {
	name  string
	value slog.Value
}

// A line is what both formats are made from.
type line struct {
	time    time.Time
	level   string
	target  string
	spans   []span
	message string
	fields  []field
}

// A handler is immutable; the With methods return changed copies.
type handler struct {
	log    *Log
	target string
	spans  []span
	fields []field
	group  string // "a.b." before the names of attributes yet to come
}

var _ slog.Handler = (*handler)(nil)

// Enabled implements [slog.Handler].
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.log.filter.Load().level(h.target)
}

// Handle implements [slog.Handler]: it renders the line and queues it.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	l := line{
		time:    r.Time,
		level:   levelName(r.Level),
		target:  h.target,
		spans:   h.spans,
		message: r.Message,
		fields:  slices.Clip(h.fields),
	}
	if l.time.IsZero() {
		l.time = time.Now()
	}
	if r.NumAttrs() > 0 {
		l.fields = slices.Grow(l.fields, r.NumAttrs())
		r.Attrs(func(a slog.Attr) bool {
			l.fields = appendField(l.fields, h.group, a)
			return true
		})
	}
	return h.log.out.write(&l, h.log.render)
}

// WithAttrs implements [slog.Handler].
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.fields = flatten(slices.Clip(h.fields), h.group, attrs)
	return &n
}

// WithGroup implements [slog.Handler]: names of later attributes begin with
// name and a dot.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.group = h.group + name + "."
	return &n
}

func flatten(fields []field, group string, attrs []slog.Attr) []field {
	for _, a := range attrs {
		fields = appendField(fields, group, a)
	}
	return fields
}

// appendField adds one attribute. What has no value is left out: the contract
// knows no null (14.2, "fields that are absent").
func appendField(fields []field, group string, a slog.Attr) []field {
	v := a.Value.Resolve()
	switch {
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		return flatten(fields, group, v.Group())
	case v.Kind() == slog.KindAny && v.Any() == nil:
		return fields
	}
	return append(fields, field{group + a.Key, v})
}
