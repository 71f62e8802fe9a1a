// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A response is a DeltaDiscoveryResponse (contract 9.5). Its payloads point
// into the message as it came: a push of a whole mesh is a hundred megabytes,
// and a generated decoder would hold them twice.
type response struct {
	resources []Resource
	removed   []string
	typeURL   string
	nonce     string
}

func (r *response) payloadBytes() int {
	sum := 0
	for i := range r.resources {
		sum += len(r.resources[i].Payload)
	}
	return sum
}

// codec writes any protobuf message and reads only responses.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Name implements [encoding.CodecV2]: it is proto on the wire.
func (codec) Name() string { return "proto" }

// Marshal implements [encoding.CodecV2].
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a message", v)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements [encoding.CodecV2].
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*response)
	if !ok {
		return fmt.Errorf("decode into %T: not a response", v)
	}
	// One plain buffer, not a pooled one: a pool would keep what the largest
	// push needed.
	return r.decode(data.Materialize())
}

var errUTF8 = errors.New("string is not UTF-8")

// decode reads the wire form. b must not change while r is used.
func (r *response) decode(b []byte) error {
	*r = response{}
	var lastVersion string // one push has one version for all, or nearly
	return eachField(b, func(num protowire.Number, value []byte) (err error) {
		switch num {
		case 2:
			res := Resource{Version: lastVersion}
			if err := res.decode(value); err != nil {
				return fmt.Errorf("resource: %w", err)
			}
			lastVersion = res.Version
			r.resources = append(r.resources, res)
		case 4:
			r.typeURL, err = text(value)
		case 5:
			r.nonce, err = text(value)
		case 6:
			var name string
			name, err = text(value)
			r.removed = append(r.removed, name)
		}
		return err
	})
}

// decode reads a Resource. Its Version beforehand is a string that may be used
// again.
func (res *Resource) decode(b []byte) error {
	version := res.Version
	res.Version = ""
	return eachField(b, func(num protowire.Number, value []byte) (err error) {
		switch num {
		case 1:
			if res.Version = version; string(value) != version {
				res.Version, err = text(value)
			}
		case 2:
			res.HasPayload = true
			err = res.decodeAny(value)
		case 3:
			res.Name, err = text(value)
		case 4:
			var alias string
			alias, err = text(value)
			res.Aliases = append(res.Aliases, alias)
		}
		return err
	})
}

// decodeAny takes the value of an Any; what type it says it has is ignored
// (contract 8.3).
func (res *Resource) decodeAny(b []byte) error {
	return eachField(b, func(num protowire.Number, value []byte) error {
		if num == 2 {
			res.Payload = value
		}
		return nil
	})
}

// eachField calls field for each field with a length. Other fields, of which
// there are none that we read, are passed over.
func eachField(b []byte, field func(num protowire.Number, value []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := field(num, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errUTF8
	}
	return string(b), nil
}
