# The two packages are in a bucket that this VPC can read without a signature. A presigned URL expires within a week.
# After that, no new node could start.

locals {
  packages = {
    nats_server = var.nats_server_package
    agent       = var.agent_package
  }
}

resource "aws_s3_bucket" "packages" {
  #checkov:skip=CKV_AWS_18:This is an example, and reads of two public packages need no log.
  #checkov:skip=CKV_AWS_144:The machine that uploads the packages still has a copy.
  #checkov:skip=CKV_AWS_145:A read without a signature can't decrypt with a KMS key.
  #checkov:skip=CKV2_AWS_61:The bucket holds two files, which stay as long as the cluster.
  #checkov:skip=CKV2_AWS_62:Nothing waits for an event, because Terraform uploads the packages before it starts the nodes.
  bucket_prefix = "${var.name}-packages-"
  force_destroy = true
}

resource "aws_s3_bucket_versioning" "packages" {
  bucket = aws_s3_bucket.packages.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "packages" {
  bucket                  = aws_s3_bucket.packages.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

# A policy that is bound to one VPC endpoint doesn't count as public
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html).
resource "aws_s3_bucket_policy" "packages" {
  #checkov:skip=CKV_AWS_70:Any principal may read, but only through this VPC's endpoint.
  bucket = aws_s3_bucket.packages.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "NodesOfThisNetworkRead"
      Effect    = "Allow"
      Principal = "*"
      Action    = "s3:GetObject"
      Resource  = "${aws_s3_bucket.packages.arn}/*"
      Condition = { StringEquals = { "aws:SourceVpce" = aws_vpc_endpoint.s3.id } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.packages]
}

# The key contains the digest. A new file therefore has a new URL, and a new URL makes a new launch template.
resource "aws_s3_object" "packages" {
  for_each = local.packages

  bucket      = aws_s3_bucket.packages.id
  key         = "${filesha256(each.value)}/${basename(each.value)}"
  source      = each.value
  source_hash = filesha256(each.value)

  # The module starts nodes once the packages exist. The nodes need the bucket's policy to read the packages.
  depends_on = [aws_s3_bucket_policy.packages]
}
