// SPDX-License-Identifier: Apache-2.0

// Package reason names why connections end or are refused. Each [Reason] has
// a name, the flag of the metrics, and two sentences for operators: what it
// means and what to look at. It is the one list that the access log, the
// metric ztunnel_ends_total, /debug/route and docs/operations.md go by.
//
// Which error is which reason is said by whoever makes the error, with [New]
// or [Errorf], or by dataplane for errors of packages that know no reasons.
// The texts of errors are contract 14.6's and not this package's. Pure:
// imports nothing of ours, and may be imported by all of dataplane.
package reason

import (
	"errors"
	"fmt"
)

// A Reason says why a connection ended, or never began.
type Reason uint8

// A Flag is a reason as the label response_flags tells it (contract 12.5).
type Flag string

// The flags. TLS_FAILURE stands for a configuration of TLS that cannot be
// made, which cannot happen here.
const (
	FlagNone               Flag = "-"
	FlagDeny               Flag = "DENY"
	FlagConnect            Flag = "CONNECT" // a connection failure, or any other error
	FlagTLSFailure         Flag = "TLS_FAILURE"
	FlagH2HandshakeFailure Flag = "H2_HANDSHAKE_FAILURE"
	FlagNetworkPolicy      Flag = "NETWORK_POLICY"
	FlagIdentityError      Flag = "IDENTITY_ERROR"
	FlagCertificateRevoked Flag = "CERT_REVOKED"
)

// All lists every reason, in the order of the documentation.
func All() []Reason {
	all := make([]Reason, count)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// String is the reason's name: lower case, words apart by underscores.
func (r Reason) String() string { return r.row().name }

// Flag is what the metrics show of a connection that was opened and then
// ended so; [FlagNone] does not count as failed.
func (r Reason) Flag() Flag { return r.row().flag }

// Means says in one sentence what happened.
func (r Reason) Means() string { return r.row().means }

// Look says in one sentence what to look at; empty: there is nothing wrong.
func (r Reason) Look() string { return r.row().look }

func (r Reason) row() row {
	if r >= count {
		r = Unknown
	}
	return table[r]
}

// An Error is an error that knows its reason.
type Error struct {
	why Reason
	err error
}

// New is an error with the text given.
func New(why Reason, text string) error { return &Error{why, errors.New(text)} }

// Errorf is [fmt.Errorf] with a reason, which goes before those of errors
// that it wraps.
func Errorf(why Reason, format string, args ...any) error {
	return &Error{why, fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap is what the error was made of.
func (e *Error) Unwrap() error { return errors.Unwrap(e.err) }

// Why is the error's reason.
func (e *Error) Why() Reason { return e.why }

// Of finds the reason that err, or what it wraps, says it has by a method
// Why; ok is false if nothing of it does.
func Of(err error) (why Reason, ok bool) {
	var knows interface {
		error
		Why() Reason
	}
	if !errors.As(err, &knows) {
		return Unknown, false
	}
	return knows.Why(), true
}
