// SPDX-License-Identifier: Apache-2.0

// Package socks is the server's side of a SOCKS5 negotiation (RFC 1928), as far
// as the reference goes: no authentication, CONNECT alone (contract 6).
//
//	client -> us   05 n methods            must list 00
//	us -> client   05 00
//	client -> us   05 01 rsv type address port
//	us -> client   05 code 00 01 00000000 0000
//
// It reads not one byte beyond the request, and opens no connection: success
// is said before anything was dialled, as the reference does. Names are
// resolved by a function it is given. Imports only the standard library;
// imported by dataplane.
package socks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
)

const (
	version       = 5
	noAuth        = 0
	connect       = 1
	typeIPv4      = 1
	typeName      = 3
	typeIPv6      = 4
	succeeded     = 0
	failed        = 1 // RFC 1928, section 6: general SOCKS server failure
	unreachable   = 4 // host unreachable
	notSupported  = 7 // command not supported; the reference's answer to every other breach
	requestHeader = 4
)

// A Resolver finds the address of a name, of the family that suits the
// client.
type Resolver func(ctx context.Context, name string) (netip.Addr, error)

// An Error is a negotiation that came to nothing. Its text is the reference's
// (contract 6); the client has been told the code.
type Error struct {
	code byte
	kind string
	err  error
}

func (e *Error) Error() string { return e.kind + ": " + e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Why is the reason that goes with the code.
func (e *Error) Why() reason.Reason {
	var timeout net.Error
	switch {
	case e.code == notSupported:
		return reason.SOCKSRefused
	case e.code == unreachable:
		return reason.SOCKSName
	case errors.As(e.err, &timeout) && timeout.Timeout():
		return reason.SOCKSLate
	}
	return reason.SOCKSBroken
}

func broken(err error) error { return &Error{failed, "General", err} }
func refused(format string, args ...any) error {
	return &Error{notSupported, "CommandNotSupported", fmt.Errorf(format, args...)}
}

// Negotiate reads the greeting and the request from rw and answers them. It
// returns where the client wants to be connected. On error the client has got
// the answer that says why, if it takes one; the caller closes.
func Negotiate(ctx context.Context, rw io.ReadWriter, resolve Resolver) (netip.AddrPort, error) {
	dst, err := negotiate(ctx, rw, resolve)
	var e *Error
	switch {
	case err == nil:
	case errors.As(err, &e):
		_, _ = rw.Write(reply(e.code)) // it is too late to complain of a client that does not read
		return netip.AddrPort{}, err
	default:
		_, _ = rw.Write(reply(failed))
		return netip.AddrPort{}, broken(err)
	}
	if _, err := rw.Write(reply(succeeded)); err != nil {
		return netip.AddrPort{}, broken(fmt.Errorf("answer: %w", err))
	}
	return dst, nil
}

func reply(code byte) []byte { return []byte{version, code, 0, typeIPv4, 0, 0, 0, 0, 0, 0} }

func negotiate(ctx context.Context, rw io.ReadWriter, resolve Resolver) (netip.AddrPort, error) {
	if err := greeting(rw); err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := rw.Write([]byte{version, noAuth}); err != nil {
		return netip.AddrPort{}, fmt.Errorf("answer greeting: %w", err)
	}
	return request(ctx, rw, resolve)
}

func greeting(r io.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if head[0] != version {
		return refused("version %d is not 5", head[0])
	}
	if head[1] == 0 {
		return refused("no authentication method offered")
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return fmt.Errorf("read authentication methods: %w", err)
	}
	if !slices.Contains(methods, noAuth) {
		return refused("only authentication is offered, methods %v", methods)
	}
	return nil
}

func request(ctx context.Context, r io.Reader, resolve Resolver) (netip.AddrPort, error) {
	var head [requestHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read request: %w", err)
	}
	switch {
	case head[0] != version:
		return netip.AddrPort{}, refused("version %d is not 5", head[0])
	case head[1] != connect:
		return netip.AddrPort{}, refused("command %d is not CONNECT", head[1])
	}
	addr, name, err := address(r, head[3])
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	if _, err := io.ReadFull(r, port[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read port: %w", err)
	}
	if name != "" {
		if addr, err = lookUp(ctx, resolve, name); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(port[:])), nil
}

// address reads one of the three forms; a name is left to be resolved once the
// request is complete.
func address(r io.Reader, kind byte) (netip.Addr, string, error) {
	var length int
	switch kind {
	case typeIPv4:
		length = 4
	case typeIPv6:
		length = 16
	case typeName:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return netip.Addr{}, "", fmt.Errorf("read length of name: %w", err)
		}
		length = int(n[0])
	default:
		return netip.Addr{}, "", refused("address type %d", kind)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return netip.Addr{}, "", fmt.Errorf("read address: %w", err)
	}
	if kind == typeName {
		if length == 0 {
			return netip.Addr{}, "", refused("the name is empty")
		}
		return netip.Addr{}, string(b), nil
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr, "", nil
}

func lookUp(ctx context.Context, resolve Resolver, name string) (netip.Addr, error) {
	if resolve == nil {
		return netip.Addr{}, refused("the name %q cannot be resolved: there is no DNS proxy", name)
	}
	addr, err := resolve(ctx, name)
	if err != nil {
		return netip.Addr{}, &Error{unreachable, "HostUnreachable", fmt.Errorf("%s: %w", name, err)}
	}
	return addr, nil
}
