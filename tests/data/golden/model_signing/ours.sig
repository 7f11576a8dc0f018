{
  "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
  "verificationMaterial": {
    "publicKey": {
      "hint": "399bed711bccbcc265e42a84248dc18ff76852f1d963eee98cb77b213026479e"
    },
    "tlogEntries": []
  },
  "dsseEnvelope": {
    "payload": "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLCJwcmVkaWNhdGUiOnsiYnVpbGRlciI6eyJjb21taXQiOm51bGwsIm5hbWUiOiJmb3JnZWxtIiwidGFyZ2V0IjoidCIsInZlcnNpb24iOiIxIn0sInJlc291cmNlcyI6W3siYWxnb3JpdGhtIjoic2hhMjU2IiwiZGlnZXN0IjoiMWI0NjVmYTZiNmJjYmMwNmEzMTk5ZTNkMmQ4YWVjMzVkMzc0OTRhNzEyZjg4OGI2ZDU1MzY2ODRkZDg5ZDBmMCIsIm5hbWUiOiJhLmJpbiJ9LHsiYWxnb3JpdGhtIjoic2hhMjU2IiwiZGlnZXN0IjoiY2EzZDE2M2JhYjA1NTM4MTgyNzIyNjE0MDU2OGYzYmVmN2VhYWMxODdjZWJkNzY4NzhlMGI2M2U5ZTQ0MjM1NiIsIm5hbWUiOiJjb25maWcuanNvbiJ9LHsiYWxnb3JpdGhtIjoic2hhMjU2IiwiZGlnZXN0IjoiMjM5NjA5OWM2YzA4NGZhNGI5YmVhYzlmMGQ1MmNmM2JlOWNmOGQ0NzA0MGVmMTI3ODgzZDUzMmI1NzkwY2Q3NCIsIm5hbWUiOiJzdWIvYi5iaW4ifV0sInNlcmlhbGl6YXRpb24iOnsiYWxsb3dfc3ltbGlua3MiOmZhbHNlLCJoYXNoX3R5cGUiOiJzaGEyNTYiLCJpZ25vcmVfcGF0aHMiOlsibW9kZWwuc2lnIl0sIm1ldGhvZCI6ImZpbGVzIn0sInNpZ25lZF9hdCI6IjIwMjYtMDYtMDFUMTI6MDA6MDArMDA6MDAiLCJzaWduZXIiOnsia2V5X29yaWdpbiI6InByb3Zpc2lvbmVkIiwia2V5aWQiOiIzOTliZWQ3MTFiY2NiY2MyNjVlNDJhODQyNDhkYzE4ZmY3Njg1MmYxZDk2M2VlZTk4Y2I3N2IyMTMwMjY0NzllIiwibGFiZWwiOm51bGx9fSwicHJlZGljYXRlVHlwZSI6Imh0dHBzOi8vbW9kZWxfc2lnbmluZy9zaWduYXR1cmUvdjEuMCIsInN1YmplY3QiOlt7ImRpZ2VzdCI6eyJzaGEyNTYiOiJjM2VmNmZkYmZlMGU1MjJlN2JmYjUxYmMwOTEzZmE3ZTliZmQ3NTcyMTgzNDcxYjdmNzhkMWFjZDA1NzczYjhkIn0sIm5hbWUiOiJtb2RlbCJ9XX0=",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEUCIQCHfyUNKyNItNTpQEksh4qdl+JiQWr0yzodXeFgez9GDwIgdcOrHzMkPOWA+u2bzVONrbaH9GTcbWdzMEwWQ0WDcbM="
      }
    ]
  }
}
